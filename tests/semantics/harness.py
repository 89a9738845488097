"""Runs one instruction over arrays of operands: a thread for each element, a register for each array."""

import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lowbitvm.runtime import emulator

Array = np.ndarray[Any, np.dtype[Any]]
TARGET, VERSION = "sm_100a", "8.8"
REGISTER = {1: "%c", 2: "%h", 4: "%r", 8: "%d", 16: "%q"}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
BLOCK = 128


def evaluate(
    body: str, inputs: Sequence[Array], results: str, target: str = TARGET, version: str = VERSION, **options: Any
) -> list[Array]:
    """Arrays of the results of `body` for each element of the inputs.

    In `body`, {a}, {b}, {c} ... are registers with the inputs and {x}, {y}, {z} ... those of the results. `results` has
    for each of these its bits ("32 pred"); inputs of type bool are predicates.
    """
    count = len(inputs[0])
    padded = -(-count // BLOCK) * BLOCK
    arrays = [np.resize(array, padded) for array in inputs]
    names: dict[str, str] = {}
    before, after, outputs = [], [], []
    for n, array in enumerate(arrays):
        letter = string.ascii_lowercase[n]
        size = array.dtype.itemsize
        before.append(f"ld.param.u64 %d40, [p{n}]; mad.wide.u32 %d40, %r40, {size}, %d40;")
        if array.dtype == bool:
            names[letter] = f"%p{n}"
            before.append(f"ld.global.u8 %h40, [%d40]; setp.ne.u16 %p{n}, %h40, 0;")
        else:
            names[letter] = f"{REGISTER[size]}{n}"
            before.append(f"ld.global.b{8 * size} {names[letter]}, [%d40];")
    for n, kind in enumerate(results.split()):
        letter, number = "xyzuvw"[n], len(arrays) + n
        size = 1 if kind == "pred" else int(kind) // 8
        outputs.append(np.zeros(padded, UNSIGNED[size]))
        after.append(f"ld.param.u64 %d40, [p{number}]; mad.wide.u32 %d40, %r40, {size}, %d40;")
        if kind == "pred":
            names[letter] = f"%p{20 + n}"
            after.append(f"selp.u16 %h40, 1, 0, %p{20 + n}; st.global.u8 [%d40], %h40;")
        else:
            names[letter] = f"{REGISTER[size]}{20 + n}"
            after.append(f"st.global.b{8 * size} [%d40], {names[letter]};")
    parameters = ", ".join(f".param .u64 p{n}" for n in range(len(arrays) + len(outputs)))
    text = f"""
    .version {version}
    .target {target}
    .address_size 64
    .visible .entry k({parameters}) {{
        .reg .pred %p<32>; .reg .b8 %c<32>; .reg .b16 %h<48>; .reg .b32 %r<48>; .reg .b64 %d<48>;
        mov.u32 %r40, %ctaid.x; mov.u32 %r41, %tid.x; mad.lo.u32 %r40, %r40, {BLOCK}, %r41;
        {" ".join(before)}
        {fill(body, names)}
        {" ".join(after)}
        ret;
    }}"""
    module = emulator.load(text)
    buffers = [*arrays, *(emulator.output(array) for array in outputs)]
    module.launch("k", (padded // BLOCK,), (BLOCK,), buffers, **options)
    return [array[:count] for array in outputs]


def fill(body: str, names: dict[str, str]) -> str:
    """`body` with registers for the letters in braces that it names; other braces are PTX's own."""
    for letter, register in names.items():
        body = body.replace("{" + letter + "}", register)
    return body


def patterns(bits: int, count: int, seed: int) -> Array:
    """Random patterns, a third of them at the edges of integers and of floats of that width."""
    rng = np.random.default_rng([seed, bits])
    values = rng.integers(0, 1 << bits, count, dtype=np.uint64 if bits == 64 else np.int64).astype(np.uint64)
    top = 1 << bits
    edges = [0, 1, 2, 3, 5, 7, 8, 15, 16, 31, 32, 33, 63, 64, 127, 128, 255, 256, top - 1, top - 2, top // 2]
    edges += [top // 2 - 1, top // 2 + 1, top // 4, top // 3]
    chosen = np.array([edge % top for edge in edges], np.uint64)[rng.integers(0, len(edges), count)]
    return np.where(rng.random(count) < 1 / 3, chosen, values).astype(UNSIGNED[bits // 8])


def signed(value: int, bits: int) -> int:
    """The two's complement value of a pattern."""
    return value - (1 << bits) if value >> (bits - 1) else value


def agree(form: str, inputs: Sequence[Array], got: Array, expected: Iterable[int]) -> None:
    """Every element equals the oracle's; the message shows the first that does not."""
    wanted = list(expected)
    wrong = [n for n, (have, want) in enumerate(zip(got.tolist(), wanted, strict=True)) if have != want]
    if wrong:
        n = wrong[0]
        operands = [hex(int(array[n])) for array in inputs]
        message = f"{form}: {operands} gives {hex(int(got[n]))}, the manual says {hex(wanted[n])}"
        raise AssertionError(f"{message} ({len(wrong)} of {len(wanted)} differ)")
