"""CUTLASS's device-level GEMMs and CuTe's MMA atoms, compiled here by nvcc, against numpy.

Operands are small integers, so that every order and precision of summing gives the same result.
"""

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.third_party.catalogue import ATOMS, atoms, gemm
from tests.third_party.running import cuda, empty

BF16 = ml_dtypes.bfloat16
E4M3 = ml_dtypes.float8_e4m3fn
E5M2 = ml_dtypes.float8_e5m2


@dataclass(frozen=True)
class Gemm:
    """What a GEMM of gemm.cu takes: types, the sizes it is run at, alpha and beta; bits below 8 are packed along k."""

    left: Any
    right: Any
    result: Any
    size: tuple[int, int, int]
    bits: int = 0
    left_columns: bool = False
    right_rows: bool = False
    alpha: float = 1.0
    beta: float = 0.0
    splits: int = 1


F16 = np.float16
F32 = np.float32
GEMMS = {
    "f16_sm80": Gemm(F16, F16, F16, (72, 80, 136), alpha=0.5, beta=2.0),
    "f16_rows_sm80": Gemm(F16, F16, F32, (72, 400, 104), left_columns=True, right_rows=True),
    "f16_f16_sm80": Gemm(F16, F16, F16, (70, 80, 74)),
    "f16_split_sm80": Gemm(F16, F16, F16, (72, 80, 264), alpha=0.5, beta=2.0, splits=3),
    "bf16_sm80": Gemm(BF16, BF16, BF16, (130, 72, 72)),
    "tf32_sm80": Gemm(F32, F32, F32, (70, 68, 60), beta=1.0),
    "tf32x3_sm80": Gemm(F32, F32, F32, (70, 68, 60)),
    "s8_sm80": Gemm(np.int8, np.int8, np.int32, (70, 68, 176), alpha=3.0),
    "s8_clamp_sm80": Gemm(np.int8, np.int8, np.int8, (70, 80, 176), alpha=0.5, beta=1.0),
    "u8_sm80": Gemm(np.uint8, np.int8, np.int32, (70, 68, 176)),
    "s4_sm80": Gemm(np.int8, np.int8, np.int32, (70, 68, 352), bits=4),
    "b1_xor_sm80": Gemm(np.uint8, np.uint8, np.int32, (70, 68, 1408), bits=1),
    "b1_and_sm80": Gemm(np.uint8, np.uint8, np.int32, (70, 68, 1408), bits=1),
    "f64_sm80": Gemm(np.float64, np.float64, np.float64, (35, 37, 41), beta=0.5),
    "simt_sm80": Gemm(F32, F32, F32, (70, 67, 45), right_rows=True),
    "simt_sm75": Gemm(F32, F32, F32, (70, 67, 45), left_columns=True, right_rows=True),
    "dp4a_sm75": Gemm(np.int8, np.int8, np.int32, (70, 67, 72)),
    "s8_sm75": Gemm(np.int8, np.int8, np.int32, (70, 68, 176)),
    "s4_sm75": Gemm(np.int8, np.int8, np.int32, (70, 68, 352), bits=4),
    "b1_sm75": Gemm(np.uint8, np.uint8, np.int32, (70, 68, 1408), bits=1),
    "f16_sm75": Gemm(F16, F16, F16, (72, 80, 72), alpha=0.125),
    "e4m3_sm89": Gemm(E4M3, E4M3, F16, (72, 80, 176)),
    "e5m2_sm89": Gemm(E5M2, E4M3, F32, (72, 80, 176)),
}


def _values(seed: int, shape: tuple[int, int], dtype: Any, bits: int) -> Any:
    low = 0 if np.dtype(dtype).kind == "u" else -4
    return np.random.default_rng(seed).integers(low, 2 if bits == 1 else 5, shape).astype(dtype)


def _packed(values: Any, bits: int) -> Any:
    """Elements along rows, lowest bits first."""
    if bits == 1:
        return np.packbits(values, axis=1, bitorder="little")
    if bits == 4:
        codes = values.view(np.uint8) & 15
        return np.ascontiguousarray(codes[:, ::2] | codes[:, 1::2] << 4)
    return np.ascontiguousarray(values)


def _expected(name: str, case: Gemm, left: Any, right: Any, added: Any) -> Any:
    wide = np.float64
    product = left.astype(wide) @ right.astype(wide)
    if name in ("b1_xor_sm80", "b1_sm75"):  # ones of a and b that are not common to both
        product = left.sum(1, dtype=wide)[:, None] + right.sum(0, dtype=wide) - 2 * product
    result = case.alpha * product + case.beta * added.astype(wide)
    if name == "s8_clamp_sm80":
        return np.clip(np.rint(result), -128, 127)
    return np.maximum(result, 0) if name == "simt_sm75" else result


@pytest.mark.parametrize("name", GEMMS)
def test_a_gemm_of_cutlass_equals_numpys(name: str) -> None:
    case, source = GEMMS[name], gemm(name)
    m, n, k = case.size
    left, right = _values(0, (m, k), case.left, case.bits), _values(1, (k, n), case.right, case.bits)
    added = _values(2, (m, n), case.result, 0)
    a = _packed(left.T if case.left_columns else left, case.bits)
    b = _packed(right if case.right_rows else right.T, case.bits)
    *_, shape = next(cuda(source, "launch_shape", (1,), (1,), m, n, k, case.splits, empty(5, dtype=np.int32)))
    shared, threads, *grid = map(int, shape)
    semaphores = np.zeros(grid[0] * grid[1], np.int32)
    strides = [m if case.left_columns else k, n if case.right_rows else k]
    args = [
        a,
        b,
        added,
        empty(m, n, dtype=case.result),
        m,
        n,
        k,
        *strides,
        case.alpha,
        case.beta,
        case.splits,
        semaphores,
    ]
    expected = _expected(name, case, left, right, added)
    for _, _, _, d, *_, turns in cuda(source, "gemm_kernel", grid, (threads,), *args, shared=shared):
        if name == "f16_sm75":
            _assert_gelu(d, expected)
        else:
            np.testing.assert_array_equal(d, expected.astype(case.result))
        assert not turns.any()


def _assert_gelu(found: Any, x: Any) -> None:
    from math import erf

    expected = 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    # erff errs by two units in the last place of a number near 1; the result is rounded to f16.
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2.0**-11, atol=4 * 2.0**-22)


def test_a_gemm_of_full_f32_precision_from_three_tf32_products_keeps_it() -> None:
    rng, (m, n, k) = np.random.default_rng(0), (64, 64, 64)
    a, b = rng.standard_normal((m, k)).astype(F32), rng.standard_normal((n, k)).astype(F32)
    *_, shape = next(cuda(gemm("tf32x3_sm80"), "launch_shape", (1,), (1,), m, n, k, 1, empty(5, dtype=np.int32)))
    args = [a, b, np.zeros((m, n), F32), empty(m, n), m, n, k, k, k, 1.0, 0.0, 1, np.zeros(1, np.int32)]
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    sizes = np.abs(a).astype(np.float64) @ np.abs(b.T)
    for _, _, _, d, *_ in cuda(gemm("tf32x3_sm80"), "gemm_kernel", (1,), (int(shape[1]),), *args, shared=int(shape[0])):
        # What is left out is 2^-22 of each product; each of the sums, truncated, errs by an ulp of its size.
        assert (np.abs(d - exact) <= (3 * k + 4) * 2.0**-23 * sizes).all()


PATTERN = re.compile(r"SM\d+_(\d+)x(\d+)x(\d+)_(F16|F32|F64|S32)(.+?)(F16|F32|F64|S32)_TN(_.*)?")
OPERANDS = {
    "F16": F16,
    "BF16": BF16,
    "TF32": F32,
    "F64": np.float64,
    "S8": np.int8,
    "U8": np.uint8,
    "S4": ml_dtypes.int4,
    "U4": ml_dtypes.uint4,
    "U1": np.uint8,
    "E2M1": ml_dtypes.float4_e2m1fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E4M3": E4M3,
    "E5M2": E5M2,
}
ACCUMULATORS = {"F16": F16, "F32": F32, "F64": np.float64, "S32": np.int32}


@dataclass(frozen=True)
class Atom:
    """An MMA atom as its name in CuTe describes it."""

    m: int
    n: int
    k: int
    left: str
    right: str
    total: str
    end: str

    @staticmethod
    def parse(name: str) -> "Atom":
        match = PATTERN.fullmatch(name)
        assert match, name
        left, right = next((a, b) for a in OPERANDS for b in OPERANDS if a + b == match[5])
        return Atom(int(match[1]), int(match[2]), int(match[3]), left, right, match[4], match[7] or "")

    @property
    def group(self) -> int:
        """Elements along k to a scale; 0: no scales."""
        return int(self.end.removeprefix("_VS")) if self.end.startswith("_VS") else 0


def _words(values: Any) -> Any:
    """Each value's bits in a 32-bit word, or two for 64 bits."""
    unsigned = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}[values.dtype.itemsize]
    codes = values.view(unsigned)
    return codes.view(np.uint32) if values.dtype.itemsize == 8 else codes.astype(np.uint32)


def _operand(atom: Atom, rows: int, kind: str, seed: int) -> tuple[Any, Any]:
    """Values (rows, k) and their words. e2m1 stands in the middle of its byte where the others take eight bits."""
    unsigned, high = kind.startswith("U"), 2 if kind == "U1" else 5
    values = np.random.default_rng(seed).integers(0 if unsigned else -4, high, (rows, atom.k)).astype(OPERANDS[kind])
    words = _words(values)
    return values.astype(np.float64), words << 2 if kind == "E2M1" and atom.k == 32 else words


def _scales(atom: Atom, rows: int, seed: int) -> tuple[Any, Any]:
    """Powers of two, (rows, groups), and their codes."""
    exponents = np.random.default_rng(seed).integers(-2, 3, (rows, atom.k // atom.group))
    values = 2.0**exponents
    codes = values.astype(E4M3).view(np.uint8) if atom.group == 16 else exponents + 127
    return np.repeat(values, atom.group, 1), codes.astype(np.uint32)


def _accumulators(atom: Atom, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    values = rng.integers(-100, 101, (atom.m, atom.n))
    if atom.total == "S32":  # some at both ends, where sums wrap or saturate
        values = np.where(rng.random(values.shape) < 0.3, np.sign(values) * (2**31 - 2), values)
    return values.astype(ACCUMULATORS[atom.total])


def _result(atom: Atom, left: Any, right: Any, added: Any) -> Any:
    common = left @ right.T
    product = left.sum(1)[:, None] + right.sum(1) - 2 * common if atom.end == "_XORPOPC" else common
    total = product + added.astype(np.float64)
    if atom.total != "S32":
        return total.astype(ACCUMULATORS[atom.total])
    exact = total.astype(np.int64)
    return np.clip(exact, -(2**31), 2**31 - 1).astype(np.int32) if atom.end == "_SATURATE" else exact.astype(np.int32)


def _fragment(atom: Atom, matrix: Any) -> Any:
    """(32 lanes, values): lane l holds columns 2 (l % 4) and the next of rows l / 4 and, for m = 16, 8 below."""
    lanes, rows = np.arange(32), np.arange(atom.m // 8) * 8
    row = (lanes // 4)[:, None, None] + rows[None, :, None]
    column = (lanes % 4 * 2)[:, None, None] + np.arange(2)[None, None, :]
    return matrix[np.broadcast_to(row, (32, len(rows), 2)), np.broadcast_to(column, (32, len(rows), 2))].reshape(32, -1)


@pytest.mark.parametrize(("arch", "name"), [(arch, name) for arch, names in ATOMS.items() for name in names])
def test_an_mma_atom_of_cute_computes_its_product_in_its_layout(arch: str, name: str) -> None:
    atom = Atom.parse(name)
    left, a = _operand(atom, atom.m, atom.left, 0)
    right, b = _operand(atom, atom.n, atom.right, 1)
    scales = [np.zeros(1, np.uint32), np.zeros(1, np.uint32)]
    if atom.group:
        left_scales, scales[0] = _scales(atom, atom.m, 2)
        right_scales, scales[1] = _scales(atom, atom.n, 3)
        left, right = left * left_scales, right * right_scales
    added = _accumulators(atom, 4)
    expected = _result(atom, left, right, added)
    fragment = np.ascontiguousarray(_fragment(atom, expected)).view(np.uint32)
    args = [a, b, _words(added), *scales, empty(*_words(expected).shape, dtype=np.uint32)]
    for *_, d, raw in cuda(atoms(arch), name, (1,), (32,), *args, empty(*fragment.shape, dtype=np.uint32)):
        np.testing.assert_array_equal(d, _words(expected))
        np.testing.assert_array_equal(raw, fragment)


@pytest.mark.parametrize("arch", ATOMS)
def test_every_kernel_of_the_atoms_file_is_tested(arch: str) -> None:
    assert set(emulator.load(atoms(arch).compile().ptx).programs) == set(ATOMS[arch])
