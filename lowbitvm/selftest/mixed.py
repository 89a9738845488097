"""Problems of several weights in one launch, for the self-test: exact integers, by int64."""

from collections.abc import Callable
from functools import partial

import numpy as np

import lowbitvm as lb
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits
from lowbitvm.selftest.problems import Arrays, NumpyArray, Problem, drawn, numbers

K, N = 512, 70


def _weight(rng: np.random.Generator, code: str, n: int, k: int, digits: str, act: str = "i8") -> PackedDigits:
    return lb.pack_weights(drawn(rng, code, (n, k)), Format(code, act=act, digits=digits))


def _activations(rng: np.random.Generator, act: str, m: int, k: int, digits: str) -> PackedDigits:
    return lb.pack_activations(drawn(rng, act, (m, k)), Format(act, digits=digits))


def terms(digits: str, m: int) -> Problem:
    """A sum of products with one activation."""
    rng = np.random.default_rng(m)
    a = _activations(rng, "i8", m, K, digits)
    weights = [_weight(rng, code, N, K, digits) for code in ("bp1", "ternary", "u3")]
    exact = np.sum([numbers(a) @ numbers(weight).T for weight in weights], axis=0)
    return _exact(lambda: [lb.mixed_matmul(a, lb.mix_terms(*weights))], lambda: [exact])


def columns(digits: str, m: int) -> Problem:
    """Parts of k with activations of two widths."""
    rng = np.random.default_rng(m)
    parts = [("i8", "i4", 300), ("i4", "u2", K)]
    sides = [_activations(rng, act, m, k, digits) for act, _, k in parts]
    weights = [_weight(rng, code, N, k, digits, act) for act, code, k in parts]
    exact = np.sum([numbers(a) @ numbers(w).T for a, w in zip(sides, weights, strict=True)], axis=0)
    return _exact(lambda: [lb.mixed_matmul(sides, lb.mix_columns(*weights))], lambda: [exact])


def rows(digits: str, m: int) -> Problem:
    """Output features of three widths, in an order of their own."""
    rng = np.random.default_rng(m)
    a, counts = _activations(rng, "i8", m, K, digits), (37, 100, 5)
    weights = [_weight(rng, code, n, K, digits) for code, n in zip(("i8", "u4", "i2"), counts, strict=True)]
    places = np.split(rng.permutation(sum(counts)), np.cumsum(counts)[:-1])
    exact = np.zeros((m, sum(counts)), np.int64)
    for weight, place in zip(weights, places, strict=True):
        exact[:, place] = numbers(a) @ numbers(weight).T
    return _exact(lambda: [lb.mixed_matmul(a, lb.mix_rows(weights, places))], lambda: [exact])


def complex_product(digits: str, m: int) -> Problem:
    """Complex activations and weights of 1, -1, i and -i."""
    rng = np.random.default_rng(m)
    re, im = (_activations(rng, "i8", m, K, digits) for _ in range(2))
    units = rng.choice([1, -1, 1j, -1j], (N, K))
    exact = (numbers(re) + 1j * numbers(im)) @ units.T
    weight = lb.pack_complex(units, "i8", digits=digits)
    return _exact(lambda: list(lb.complex_matmul(re, im, weight)), lambda: [exact.real, exact.imag])


def _exact(run: Callable[[], Arrays], expected: Callable[[], list[NumpyArray]]) -> Problem:
    return Problem(lambda target: run(), lambda: [(found.astype(np.int64), None) for found in expected()])


def problems(digits: str, m: int) -> dict[str, Callable[[], Problem]]:
    """By name."""
    made = {"terms": terms, "columns": columns, "rows": rows, "complex": complex_product}
    return {name: partial(problem, digits, m) for name, problem in made.items()}
