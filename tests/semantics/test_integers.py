"""Integer arithmetic, logic, shifts, bit fields, permutation and selection in exact integers, as the manual says."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.semantics.harness import Array, agree, evaluate, patterns, signed

COUNT = 384
Oracle = Callable[..., int]
# form -> (instruction, bits of the inputs, bits of the result or "pred", oracle over patterns)
Row = tuple[str, str, str, Oracle]


def bits_of(kind: str) -> int:
    return int(kind[1:])


def value(pattern: int, kind: str) -> int:
    return signed(pattern, bits_of(kind)) if kind[0] == "s" else pattern


def over(kind: str, function: Callable[..., int], result: int | None = None) -> Oracle:
    """`function` over values of type `kind`, its result wrapped."""
    mask = (1 << (result or bits_of(kind))) - 1
    return lambda *operands: function(*(value(x, kind) for x in operands)) & mask


def clamp(number: int, kind: str) -> int:
    bits = bits_of(kind)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    return min(max(number, low), high)


def quotient(a: int, b: int) -> int:
    """Division truncates toward zero; by zero the manual gives an unspecified value, so that is not asked."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def arithmetic() -> Iterator[Row]:
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        n = bits_of(kind)
        two, three = f"{n} {n}", f"{n} {n} {n}"
        for name, function in (
            ("add", lambda a, b: a + b),
            ("sub", lambda a, b: a - b),
            ("mul.lo", lambda a, b: a * b),
            ("min", min),
            ("max", max),
        ):
            yield f"{name}.{kind} {{x}}, {{a}}, {{b}};", two, str(n), over(kind, function)
        yield f"mul.hi.{kind} {{x}}, {{a}}, {{b}};", two, str(n), over(kind, lambda a, b, n=n: a * b >> n)
        yield f"mad.lo.{kind} {{x}}, {{a}}, {{b}}, {{c}};", three, str(n), over(kind, lambda a, b, c: a * b + c)
        high = over(kind, lambda a, b, c, n=n: (a * b >> n) + c)
        yield f"mad.hi.{kind} {{x}}, {{a}}, {{b}}, {{c}};", three, str(n), high
        yield f"sad.{kind} {{x}}, {{a}}, {{b}}, {{c}};", three, str(n), over(kind, lambda a, b, c: c + abs(a - b))
        if n < 64:
            wide = over(kind, lambda a, b: a * b, 2 * n)
            yield f"mul.wide.{kind} {{x}}, {{a}}, {{b}};", two, str(2 * n), wide
            mask = (1 << 2 * n) - 1
            yield (
                f"mad.wide.{kind} {{x}}, {{a}}, {{b}}, {{c}};",
                f"{n} {n} {2 * n}",
                str(2 * n),
                lambda a, b, c, kind=kind, mask=mask: (value(a, kind) * value(b, kind) + c) & mask,
            )
        if kind[0] == "s":
            yield f"abs.{kind} {{x}}, {{a}};", str(n), str(n), over(kind, abs)
            yield f"neg.{kind} {{x}}, {{a}};", str(n), str(n), over(kind, lambda a: -a)
    for name, function in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b)):
        saturated = over("s32", lambda a, b, function=function: clamp(function(a, b), "s32"))
        yield f"{name}.sat.s32 {{x}}, {{a}}, {{b}};", "32 32", "32", saturated
    saturated = over("s32", lambda a, b, c: clamp((a * b >> 32) + c, "s32"))
    yield "mad.hi.sat.s32 {x}, {a}, {b}, {c};", "32 32 32", "32", saturated
    for name, function in (("min", min), ("max", max)):
        relu = over("s32", lambda a, b, function=function: max(function(a, b), 0))
        yield f"{name}.relu.s32 {{x}}, {{a}}, {{b}};", "32 32", "32", relu
    yield from pairs()
    yield from twenty_four()


def pairs() -> Iterator[Row]:
    """Two 16-bit values in a word, each for itself."""
    for kind in ("u16", "s16"):
        functions = {"add": lambda a, b: a + b, "min": min, "max": max}
        if kind == "s16":
            functions |= {"min.relu": lambda a, b: max(min(a, b), 0), "max.relu": lambda a, b: max(a, b, 0)}
        for name, function in functions.items():
            one = over(kind, function)
            yield (
                f"{name}.{kind}x2 {{x}}, {{a}}, {{b}};",
                "32 32",
                "32",
                lambda a, b, one=one: one(a & 0xFFFF, b & 0xFFFF) | one(a >> 16, b >> 16) << 16,
            )


def twenty_four() -> Iterator[Row]:
    """mul24 and mad24: the low 24 bits of the sources; .lo the low 32 bits of 48, .hi its bits 47 to 16."""
    for kind in ("u32", "s32"):

        def product(a: int, b: int, kind: str = kind) -> int:
            low = [x & 0xFFFFFF for x in (a, b)]
            return (signed(low[0], 24) * signed(low[1], 24)) if kind == "s32" else low[0] * low[1]

        for part, shift in (("lo", 0), ("hi", 16)):
            yield (
                f"mul24.{part}.{kind} {{x}}, {{a}}, {{b}};",
                "32 32",
                "32",
                lambda a, b, product=product, shift=shift: product(a, b) >> shift & 0xFFFFFFFF,
            )
            yield (
                f"mad24.{part}.{kind} {{x}}, {{a}}, {{b}}, {{c}};",
                "32 32 32",
                "32",
                lambda a, b, c, product=product, shift=shift: (product(a, b) >> shift) + c & 0xFFFFFFFF,
            )
    yield (
        "mad24.hi.sat.s32 {x}, {a}, {b}, {c};",
        "32 32 32",
        "32",
        lambda a, b, c: (
            clamp((signed(a & 0xFFFFFF, 24) * signed(b & 0xFFFFFF, 24) >> 16) + signed(c, 32), "s32") & 0xFFFFFFFF
        ),
    )


def logic() -> Iterator[Row]:
    for n in (16, 32, 64):
        mask = (1 << n) - 1
        for name, function in (("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b)):
            yield f"{name}.b{n} {{x}}, {{a}}, {{b}};", f"{n} {n}", str(n), function
        yield f"not.b{n} {{x}}, {{a}};", str(n), str(n), lambda a, mask=mask: ~a & mask
        yield f"cnot.b{n} {{x}}, {{a}};", str(n), str(n), lambda a: int(a == 0)
        yield f"shl.b{n} {{x}}, {{a}}, {{b}};", f"{n} 32", str(n), lambda a, b, n=n, mask=mask: a << min(b, n) & mask
        for sign in "bu":
            yield f"shr.{sign}{n} {{x}}, {{a}}, {{b}};", f"{n} 32", str(n), lambda a, b, n=n: a >> min(b, n)
        yield (
            f"shr.s{n} {{x}}, {{a}}, {{b}};",
            f"{n} 32",
            str(n),
            lambda a, b, n=n, mask=mask: signed(a, n) >> min(b, n) & mask,
        )
    for n in (32, 64):
        yield f"popc.b{n} {{x}}, {{a}};", str(n), "32", lambda a: a.bit_count()
        yield f"clz.b{n} {{x}}, {{a}};", str(n), "32", lambda a, n=n: n - a.bit_length()
        yield f"brev.b{n} {{x}}, {{a}};", str(n), str(n), lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2)
        for sign in "us":
            yield f"bfind.{sign}{n} {{x}}, {{a}};", str(n), "32", lambda a, n=n, s=sign: leading(a, n, s) & 0xFFFFFFFF
            yield (
                f"bfind.shiftamt.{sign}{n} {{x}}, {{a}};",
                str(n),
                "32",
                lambda a, n=n, s=sign: (n - 1 - leading(a, n, s) if leading(a, n, s) >= 0 else -1) & 0xFFFFFFFF,
            )
            yield (
                f"bfe.{sign}{n} {{x}}, {{a}}, {{b}}, {{c}};",
                f"{n} 32 32",
                str(n),
                lambda a, b, c, n=n, s=sign: extract(a, b & 255, c & 255, n, s),
            )
        yield (
            f"bfi.b{n} {{x}}, {{a}}, {{b}}, {{c}}, {{e}};".replace("{e}", "{d}"),
            f"{n} {n} 32 32",
            str(n),
            lambda a, b, c, d, n=n: insert(a, b, c & 255, d & 255, n),
        )
    yield "fns.b32 {x}, {a}, {b}, {c};", "32 base small", "32", find_nth_set
    for mode in ("clamp", "wrap"):
        yield f"bmsk.{mode}.b32 {{x}}, {{a}}, {{b}};", "32 32", "32", lambda a, b, m=mode: bit_mask(a, b, m)
        for kind in ("u32", "s32"):
            yield (
                f"szext.{mode}.{kind} {{x}}, {{a}}, {{b}};",
                "32 32",
                "32",
                lambda a, b, m=mode, kind=kind: sign_or_zero_extend(a, b, m, kind),
            )
        for side in "lr":
            yield (
                f"shf.{side}.{mode}.b32 {{x}}, {{a}}, {{b}}, {{c}};",
                "32 32 32",
                "32",
                lambda a, b, c, m=mode, side=side: funnel(a, b, min(c, 32) if m == "clamp" else c & 31, side),
            )
    for table in (0x00, 0x01, 0x1A, 0x80, 0x96, 0xB8, 0xCA, 0xE8, 0xF0, 0xFE, 0xFF):
        yield (
            f"lop3.b32 {{x}}, {{a}}, {{b}}, {{c}}, {table};",
            "32 32 32",
            "32",
            lambda a, b, c, t=table: lookup(a, b, c, t),
        )
    for mode in ("", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"):
        yield (
            f"prmt.b32{mode} {{x}}, {{a}}, {{b}}, {{c}};",
            "32 32 32",
            "32",
            lambda a, b, c, m=mode: permute(a, b, c, m),
        )


def leading(a: int, n: int, sign: str) -> int:
    """bfind: the most significant 1 of an unsigned, of a signed the most significant bit unlike the sign; or -1."""
    if sign == "s" and a >> (n - 1):
        a = ~a & ((1 << n) - 1)
    return a.bit_length() - 1


def extract(a: int, position: int, length: int, n: int, sign: str) -> int:
    """The manual's loop: above the field and beyond the top comes the sign bit, the field's own where it is inside."""
    at = min(position + length - 1, n - 1)
    filler = 0 if sign == "u" or length == 0 else a >> at & 1
    result = 0
    for i in range(n):
        bit = a >> (position + i) & 1 if i < length and position + i < n else filler
        result |= bit << i
    return result


def insert(a: int, b: int, position: int, length: int, n: int) -> int:
    for i in range(length):
        if position + i < n:
            b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


def find_nth_set(mask: int, base: int, offset: int) -> int:
    """The position of the offset-th set bit from base on, up or, for negative offsets, down; 0: base itself."""
    steps = signed(offset, 32)
    if steps == 0:
        return base if mask >> base & 1 else 0xFFFFFFFF
    position, left = base, abs(steps) - 1
    while 0 <= position < 32:
        if mask >> position & 1:
            if left == 0:
                return position
            left -= 1
        position += 1 if steps > 0 else -1
    return 0xFFFFFFFF


def bit_mask(a: int, b: int, mode: str) -> int:
    """Ones from bit a on, b of them; both clamped to 32 or wrapped to five bits."""
    a, b = (min(x, 32) if mode == "clamp" else x & 31 for x in (a, b))
    return ((1 << b) - 1) << a & 0xFFFFFFFF


def sign_or_zero_extend(a: int, b: int, mode: str, kind: str) -> int:
    """The low b bits, extended; clamped at 32 bits all of them are kept, of 0 bits the result is 0."""
    n = min(b, 32) if mode == "clamp" else b & 31
    low = a & ((1 << n) - 1)
    return signed(low, n) & 0xFFFFFFFF if n and kind == "s32" else low


def funnel(a: int, b: int, count: int, side: str) -> int:
    both = b << 32 | a
    return both << count >> 32 & 0xFFFFFFFF if side == "l" else both >> count & 0xFFFFFFFF


def lookup(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for i in range(32):
        index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1
        result |= (table >> index & 1) << i
    return result


def permute(a: int, b: int, c: int, mode: str) -> int:
    """The tables of the manual: selectors of the four result bytes, most significant first, by c's two low bits."""
    tables = {
        ".f4e": ("3210", "4321", "5432", "6543"),
        ".b4e": ("5670", "6701", "7012", "0123"),
        ".rc8": ("0000", "1111", "2222", "3333"),
        ".ecl": ("3210", "3211", "3222", "3333"),
        ".ecr": ("0000", "1110", "2210", "3210"),
        ".rc16": ("1010", "3232", "1010", "3232"),
    }
    source = (b << 32 | a).to_bytes(8, "little")
    selectors = [int(x) for x in reversed(tables[mode][c & 3])] if mode else [c >> 4 * i & 15 for i in range(4)]
    chosen = [source[s & 7] if not s & 8 else 255 * (source[s & 7] >> 7) for s in selectors]
    return int.from_bytes(bytes(chosen), "little")


def dots() -> Iterator[Row]:
    for a_kind in ("u32", "s32"):
        for b_kind in ("u32", "s32"):

            def byte(word: int, i: int, kind: str) -> int:
                part = word >> 8 * i & 255
                return signed(part, 8) if kind == "s32" else part

            def half(word: int, i: int, kind: str) -> int:
                part = word >> 16 * i & 0xFFFF
                return signed(part, 16) if kind == "s32" else part

            def four(a: int, b: int, c: int, ka: str = a_kind, kb: str = b_kind) -> int:
                return c + sum(byte(a, i, ka) * byte(b, i, kb) for i in range(4)) & 0xFFFFFFFF

            yield f"dp4a.{a_kind}.{b_kind} {{x}}, {{a}}, {{b}}, {{c}};", "32 32 32", "32", four
            for part, first in (("lo", 0), ("hi", 2)):

                def two(a: int, b: int, c: int, ka: str = a_kind, kb: str = b_kind, first: int = first) -> int:
                    return c + sum(half(a, i, ka) * byte(b, first + i, kb) for i in range(2)) & 0xFFFFFFFF

                yield f"dp2a.{part}.{a_kind}.{b_kind} {{x}}, {{a}}, {{b}}, {{c}};", "32 32 32", "32", two


def carries() -> Iterator[Row]:
    """Sums and products longer than a register, through the carry flag."""
    for n, u in ((32, "u32"), (64, "u64"), (32, "s32"), (64, "s64")):
        mask = (1 << n) - 1
        four = f"{n} {n} {n} {n}"
        join = lambda a, b, n=n: b << n | a  # noqa: E731
        yield (
            f"add.cc.{u} {{x}}, {{a}}, {{c}}; addc.{u} {{x}}, {{b}}, {{d}};",
            four,
            str(n),
            lambda a, b, c, d, n=n, mask=mask, join=join: join(a, b) + join(c, d) >> n & mask,
        )
        yield (
            f"sub.cc.{u} {{x}}, {{a}}, {{c}}; subc.{u} {{x}}, {{b}}, {{d}};",
            four,
            str(n),
            lambda a, b, c, d, n=n, mask=mask, join=join: join(a, b) - join(c, d) >> n & mask,
        )
        yield (
            f"add.cc.{u} {{x}}, {{a}}, {{b}}; addc.cc.{u} {{x}}, {{c}}, {{d}}; addc.{u} {{x}}, 0, 0;",
            four,
            str(n),
            lambda a, b, c, d, n=n: (a + b >> n) + c + d >> n,
        )
        yield (
            f"sub.cc.{u} {{x}}, {{a}}, {{b}}; subc.cc.{u} {{x}}, {{c}}, {{d}}; subc.{u} {{x}}, 0, 0;",
            four,
            str(n),
            lambda a, b, c, d, mask=mask: -int(c - d - (a < b) < 0) & mask,
        )
        # Where the manual speaks of a borrow, GPUs have the carry of a + ~b + 1; nvcc's divisions of 128 bits use it.
        yield (
            f"sub.cc.{u} {{x}}, {{a}}, {{b}}; subc.cc.{u} {{x}}, {{c}}, {{d}}; addc.{u} {{x}}, 0, 0;",
            four,
            str(n),
            lambda a, b, c, d: int(c - d - (a < b) >= 0),
        )
        yield (
            f"add.cc.{u} {{x}}, {{a}}, {{b}}; subc.{u} {{x}}, {{c}}, {{d}};",
            four,
            str(n),
            lambda a, b, c, d, n=n, mask=mask: c - d - 1 + (a + b >> n) & mask,
        )
        if u[0] == "u":
            yield (
                f"mad.lo.cc.{u} {{x}}, {{a}}, {{b}}, {{c}}; madc.hi.{u} {{x}}, {{a}}, {{b}}, {{d}};",
                four,
                str(n),
                lambda a, b, c, d, n=n, mask=mask, join=join: a * b + join(c, d) >> n & mask,
            )


ROWS = {row[0]: row for row in (*arithmetic(), *logic(), *dots(), *carries())}


def operands(kinds: str, seed: int = 0) -> list[Array]:
    """`base` is a bit position, `small` an integer of both signs around zero."""
    rng = np.random.default_rng(seed)
    special = {
        "base": rng.integers(0, 32, COUNT).astype(np.uint32),
        "small": rng.integers(-9, 10, COUNT).astype(np.int32).view(np.uint32),
    }
    return [
        special[kind] if kind in special else patterns(int(kind), COUNT, seed + n)
        for n, kind in enumerate(kinds.split())
    ]


@pytest.mark.parametrize("form", ROWS)
def test_an_integer_instruction_computes_what_the_manual_says(form: str) -> None:
    body, kinds, result, oracle = ROWS[form]
    inputs = operands(kinds)
    (got,) = evaluate(body, inputs, result)
    agree(form, inputs, got, (oracle(*row) for row in zip(*(array.tolist() for array in inputs), strict=True)))


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", ["div", "rem"])
def test_division_truncates_toward_zero(name: str, kind: str) -> None:
    n = bits_of(kind)
    a, b = patterns(n, COUNT, 1), patterns(n, COUNT, 2)
    b[b == 0] = 3
    (got,) = evaluate(f"{name}.{kind} {{x}}, {{a}}, {{b}};", [a, b], str(n))

    def oracle(x: int, y: int) -> int:
        p, q = value(x, kind), value(y, kind)
        return (quotient(p, q) if name == "div" else p - q * quotient(p, q)) & ((1 << n) - 1)

    agree(f"{name}.{kind}", [a, b], got, map(oracle, a.tolist(), b.tolist()))


COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMPARISONS = [(name, f"{sign}{n}") for n in (16, 32, 64) for sign in "us" for name in COMPARE]
COMPARISONS += [(name, f"u{n}") for n in (16, 32, 64) for name in UNSIGNED_NAMES]
COMPARISONS += [(name, f"b{n}") for n in (16, 32, 64) for name in ("eq", "ne")]
JOINS = {"and": lambda p, c: p and c, "or": lambda p, c: p or c, "xor": lambda p, c: p != c}


def comparands(n: int) -> tuple[Array, Array]:
    a, b = patterns(n, COUNT, 3), patterns(n, COUNT, 4)
    return a, np.where(np.arange(COUNT) % 4 == 0, a, b)


@pytest.mark.parametrize(("name", "kind"), COMPARISONS)
def test_integer_comparisons(name: str, kind: str) -> None:
    n = bits_of(kind)
    a, b = comparands(n)
    (got,) = evaluate(f"setp.{name}.{kind} {{x}}, {{a}}, {{b}};", [a, b], "pred")
    compare = COMPARE[UNSIGNED_NAMES.get(name, name)]
    agree(
        f"setp.{name}.{kind}",
        [a, b],
        got,
        (int(compare(value(x, kind), value(y, kind))) for x, y in zip(a.tolist(), b.tolist(), strict=True)),
    )


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("join", JOINS)
def test_a_comparison_joins_a_predicate_and_its_second_result_the_opposite(join: str, negated: bool) -> None:
    a, b = comparands(32)
    c = np.random.default_rng(0).random(COUNT) < 0.5
    mark = "!" if negated else ""
    x, y = evaluate(f"setp.lt.{join}.s32 {{x}}|{{y}}, {{a}}, {{b}}, {mark}{{c}};", [a, b, c], "pred pred")
    for n in range(COUNT):
        first, last = signed(int(a[n]), 32) < signed(int(b[n]), 32), bool(c[n]) != negated
        assert (x[n], y[n]) == (JOINS[join](first, last), JOINS[join](not first, last))


@pytest.mark.parametrize("kind", ["u16", "s32", "u64", "b32"])
def test_set_writes_all_ones_or_the_number_one(kind: str) -> None:
    n = bits_of(kind)
    a, b = comparands(n)
    equal = [int(x == y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    for result, true in (("u32", 0xFFFFFFFF), ("s32", 0xFFFFFFFF), ("f32", 0x3F800000)):
        (got,) = evaluate(f"set.eq.{result}.{kind} {{x}}, {{a}}, {{b}};", [a, b], "32")
        agree(f"set.eq.{result}.{kind}", [a, b], got, (true * bit for bit in equal))
        c = np.random.default_rng(0).random(COUNT) < 0.5
        (got,) = evaluate(f"set.eq.xor.{result}.{kind} {{x}}, {{a}}, {{b}}, {{c}};", [a, b, c], "32")
        agree(
            f"set.eq.xor.{result}.{kind}", [a, b, c], got, (true * (bit != p) for bit, p in zip(equal, c, strict=True))
        )


@pytest.mark.parametrize("kind", ["b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"])
def test_selection_by_a_predicate_or_a_sign(kind: str) -> None:
    n = bits_of(kind)
    a, b = patterns(n, COUNT, 5), patterns(n, COUNT, 6)
    p = np.random.default_rng(1).random(COUNT) < 0.5
    (got,) = evaluate(f"selp.{kind} {{x}}, {{a}}, {{b}}, {{c}};", [a, b, p], str(n))
    agree(f"selp.{kind}", [a, b, p], got, np.where(p, a, b).tolist())
    c = patterns(32, COUNT, 7)
    (got,) = evaluate(f"slct.{kind}.s32 {{x}}, {{a}}, {{b}}, {{c}};", [a, b, c], str(n))
    agree(f"slct.{kind}.s32", [a, b, c], got, np.where(c.view(np.int32) >= 0, a, b).tolist())
    c[:8] = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x80000001, 1, 0xFFC00000]
    for flush in ("", ".ftz"):
        (got,) = evaluate(f"slct{flush}.{kind}.f32 {{x}}, {{a}}, {{b}}, {{c}};", [a, b, c], str(n))
        controls = np.where((c & 0x7F800000) == 0, c & 0x80000000, c) if flush else c
        at_least_zero = np.array(
            [not (v & 0x7FFFFFFF) > 0x7F800000 and (v == 0x80000000 or v < 0x80000000) for v in controls.tolist()]
        )
        agree(f"slct{flush}.{kind}.f32", [a, b, c], got, np.where(at_least_zero, a, b).tolist())


@pytest.mark.parametrize("join", ["or", "and"])
def test_lop3_reduces_its_result_to_a_predicate(join: str) -> None:
    a, b, c = (patterns(32, COUNT, seed) & 3 for seed in (1, 2, 3))
    p = np.random.default_rng(1).random(COUNT) < 0.5
    words, flags = evaluate(f"lop3.{join}.b32 {{x}}|{{y}}, {{a}}, {{b}}, {{c}}, 0x96, {{d}};", [a, b, c, p], "32 pred")
    agree("lop3", [a, b, c], words, (a ^ b ^ c).tolist())
    for n in range(COUNT):
        assert flags[n] == (bool(words[n]) or p[n] if join == "or" else bool(words[n]) and p[n])


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_logic_of_predicates(name: str) -> None:
    a, b = np.arange(4) % 2 == 1, np.arange(4) // 2 == 1
    (got,) = evaluate(f"{name}.pred {{x}}, {{a}}, {{b}};", [a, b], "pred")
    assert got.tolist() == {"and": [0, 0, 0, 1], "or": [0, 1, 1, 1], "xor": [0, 1, 1, 0]}[name]
    (got,) = evaluate("not.pred {x}, {a};", [a], "pred")
    assert got.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("whole", "parts"), [(16, 2), (32, 2), (32, 4), (64, 2), (64, 4), (128, 2)])
def test_moves_pack_and_unpack_least_significant_first(whole: int, parts: int) -> None:
    n = whole // parts
    inputs = [patterns(n, COUNT, seed) for seed in range(parts)]
    letters, results = "abcd"[:parts], "xyzu"[:parts]
    kinds = " ".join([str(n)] * parts)
    braces = "{" + ", ".join(f"{{{letter}}}" for letter in letters) + "}"
    back = "{" + ", ".join(f"{{{letter}}}" for letter in results) + "}"
    middle = {16: "%h45", 32: "%r45", 64: "%d45", 128: "%q1"}[whole]
    declare = ".reg .b128 %q<2>;" if whole == 128 else ""
    got = evaluate(f"{declare} mov.b{whole} {middle}, {braces}; mov.b{whole} {back}, {middle};", inputs, kinds)
    assert all(np.array_equal(have, want) for have, want in zip(got, inputs, strict=True))
    if whole < 128:
        (got_whole,) = evaluate(f"mov.b{whole} {{x}}, {braces};", inputs, str(whole))
        columns = zip(*(array.tolist() for array in inputs), strict=True)
        agree("mov", inputs, got_whole, (sum(x << n * i for i, x in enumerate(row)) for row in columns))
