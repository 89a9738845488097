"""Targets against the assembler and the vendor's peaks; fragments against CUTLASS's traits and their closed form."""

import re
from itertools import pairwise, product

import numpy as np
import pycute
import pytest

from lowbitvm import targets
from lowbitvm.chunk import order, word_place
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.layout import Layout
from lowbitvm.pack import pack
from lowbitvm.runtime.assemble import assemble

every_target = pytest.mark.parametrize("name", targets.TARGETS)
every_atom = pytest.mark.parametrize("atom", targets.MMA_ATOMS.values(), ids=targets.MMA_ATOMS)

PTX_VERSIONS = ["6.4", "6.5", *(f"7.{i}" for i in range(9)), *(f"8.{i}" for i in range(9)), "9.0"]

# The strides of cute/atom/mma_traits_sm80.hpp and mma_traits_sm90_gmma.hpp: (lane, value) -> row + rows * column
SM80_16X8_ROW = pycute.Layout(((4, 8), (2, 2)), ((32, 1), (16, 8)))
CUTE_TRAITS = {
    (8, "a"): SM80_16X8_ROW,
    (8, "b"): pycute.Layout(((4, 8), 2), ((16, 1), 8)),
    (8, "c"): SM80_16X8_ROW,
    (16, "a"): pycute.Layout(((4, 8), (2, 2, 2)), ((32, 1), (16, 8, 128))),
    (16, "b"): pycute.Layout(((4, 8), (2, 2)), ((16, 1), (8, 64))),
    (16, "c"): SM80_16X8_ROW,
}
CUTE_WGMMA_A = pycute.Layout(((4, 8, 4), (2, 2, 2)), ((128, 1, 16), (64, 8, 512)))


# -- targets -----------------------------------------------------------------------------------------------------------


def all_atoms_ptx(version, target):
    """A kernel with every MMA atom."""
    atoms = []
    for atom in (atom for atom in targets.MMA_ATOMS.values() if atom.runs_on(targets.get(target))):
        a, b = "{%r0,%r1,%r2,%r3}" if atom.k == 16 else "{%r0,%r1}", "{%r0,%r1}" if atom.k == 16 else "{%r0}"
        atoms.append(f"{atom.mnemonic} {{%f0,%f1,%f2,%f3}}, {a}, {b}, {{%f0,%f1,%f2,%f3}};")
    return f"""
.version {version}
.target {target}
.address_size 64
.visible .entry atoms(.param .u64 data) .reqntid 32
{{
  .reg .b32 %r<4>; .reg .f32 %f<4>; .reg .b64 %d;
  ld.param.u64 %d, [data];
  cvta.to.global.u64 %d, %d;
  ld.global.v4.b32 {{%r0,%r1,%r2,%r3}}, [%d];
  ld.global.v4.f32 {{%f0,%f1,%f2,%f3}}, [%d];
  {" ".join(atoms)}
  st.global.v4.f32 [%d], {{%f0,%f1,%f2,%f3}};
  ret;
}}
"""


@every_target
def test_the_assembler_takes_every_atom_from_exactly_the_lowest_ptx_version_on(name):
    version = targets.get(name).ptx_version
    assert len(assemble(all_atoms_ptx(version, name), name).cubin) > 0
    before = dict(pairwise(reversed(PTX_VERSIONS)))[version]
    with pytest.raises(LowbitvmError) as error:
        assemble(all_atoms_ptx(before, name), name)
    assert error.value.code == "ASSEMBLER_FAILED" and re.search("(?i)version", str(error.value))


def static_shared_ptx(target, size):
    return f"""
.version {target.ptx_version}
.target {target.name}
.address_size 64
.visible .entry shared(.param .u64 data) .reqntid {target.threads_per_block}
{{
  .shared .align 16 .b8 buffer[{size}];
  .reg .b32 %r; .reg .b64 %d;
  ld.param.u64 %d, [data];
  ld.shared.b32 %r, [buffer];
  st.global.b32 [%d], %r;
  ret;
}}
"""


@every_target
def test_the_assembler_takes_static_shared_memory_up_to_a_limit_of_the_table(name):
    """It enforces the block's limit on the datacentre GPUs since Hopper, elsewhere the limit without opt-in."""
    target = targets.get(name)
    limit = target.shared_per_block if name in ("sm_90a", "sm_100a") else target.shared_without_opt_in
    assert assemble(static_shared_ptx(target, limit), name).shared == limit
    with pytest.raises(LowbitvmError, match=f"{limit:#x} max"):
        assemble(static_shared_ptx(target, limit + 1), name)


@every_target
def test_limits_are_consistent(name):
    target = targets.get(name)
    major, minor = target.capability
    assert re.fullmatch(rf"sm_{major}{minor}[af]?", target.name)
    reserved = 1024 if target.capability >= (8, 0) else 0
    assert target.shared_without_opt_in < target.shared_per_block == target.shared_per_sm - reserved
    assert target.warps_per_sm * 32 >= target.threads_per_block
    assert {atom.operand for atom in targets.MMA_ATOMS.values() if atom.runs_on(target)} == set(target.mma_dtypes)


@every_target
def test_rates_times_clock_and_sms_give_the_vendors_peaks(name):
    gpu = targets.get(name).gpu
    peaks = re.findall(r"([\d.]+) (f16|s8|s4|b1|fp8|fp4)\b", gpu.source)
    for peak, dtype in peaks:
        assert getattr(gpu, dtype) * gpu.sms * gpu.boost_ghz / 1000 == pytest.approx(float(peak), rel=0.01)
    known = {dtype for dtype in ("f16", "s8", "s4", "b1", "fp8", "fp4") if getattr(gpu, dtype) is not None}
    assert known == {dtype for _, dtype in peaks}


@every_target
def test_a_target_is_found_by_its_name_and_by_its_capability(name):
    target = targets.get(name)
    assert targets.for_capability(*target.capability) is target


@pytest.mark.parametrize(("capability", "name"), [((8, 7), "sm_86"), ((12, 1), "sm_120f")])
def test_a_newer_gpu_of_the_same_major_version_runs_the_nearest_target(capability, name):
    assert targets.for_capability(*capability).name == name


def test_unknown_targets_raise_and_list_the_known_ones():
    with pytest.raises(LowbitvmError, match=r"sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_120f") as error:
        targets.get("sm_81")
    assert error.value.code == "TARGET_UNKNOWN"
    for capability in ((7, 0), (9, 1), (10, 3), (13, 0)):
        with pytest.raises(LowbitvmError, match="sm_120f") as error:
            targets.for_capability(*capability)
        assert error.value.code == "TARGET_UNKNOWN"


# -- fragments ---------------------------------------------------------------------------------------------------------


@every_atom
def test_fragments_are_bijective_and_cover_the_atoms_shape(atom):
    shape = {"m": atom.m, "n": atom.n, "k": atom.k}
    for layout, dims in ((atom.a, "mk"), (atom.b, "nk"), (atom.c, "mn")):
        assert layout.is_bijective
        assert {name: 1 << bits for name, bits in layout.outs.items()} == {name: shape[name] for name in dims}
        assert layout.ins["lane"] == 5 and list(layout.ins) == ["register", "lane"]


@every_atom
@pytest.mark.parametrize("operand", ["a", "b", "c"])
def test_fragments_equal_cutlass_traits(atom, operand):
    layout, cute = getattr(atom, operand), CUTE_TRAITS[atom.k, operand]
    row, column = layout.outs
    assert pycute.size(cute) == 1 << sum(layout.ins.values())
    for lane, register in product(range(32), range(1 << layout.ins["register"])):
        at = layout(lane=lane, register=register)
        assert at[row] + (at[column] << layout.outs[row]) == cute(lane, register)


def test_wgmma_a_equals_cutlass_traits():
    for warp, lane, register in product(range(4), range(32), range(8)):
        at = targets.WGMMA_A(warp=warp, lane=lane, register=register)
        assert at["m"] + 64 * at["k"] == CUTE_WGMMA_A(32 * warp + lane, register)


@pytest.mark.parametrize(
    ("bits", "columns"), [(16, 8), (16, 16), (8, 16), (8, 32), (4, 32), (4, 64), (1, 128), (1, 256)]
)
def test_one_function_gives_the_closed_forms_of_a_b_and_c_for_every_element_width(bits, columns):
    e = 32 // bits
    lane, i = np.arange(32)[:, None], np.arange(16 * columns // 32)
    g, q = lane >> 2, lane & 3
    a = targets.fragment(16, columns, e, "m", "k").apply(lane=lane, register=i)
    assert (a["m"] == g + 8 * (i // e & 1)).all() and (a["k"] == q * e + i % e + 4 * e * (i // (2 * e))).all()
    i = np.arange(8 * columns // 32)
    b = targets.fragment(8, columns, e, "n", "k").apply(lane=lane, register=i)
    assert (b["n"] == g).all() and (b["k"] == q * e + i % e + 4 * e * (i // e)).all()
    i = np.arange(4)
    c = targets.fragment(16, 8, 2, "m", "n").apply(lane=lane, register=i)
    assert (c["m"] == g + 8 * (i // 2)).all() and (c["n"] == 2 * q + i % 2).all()


def test_the_wide_atom_is_two_narrow_ones_side_by_side_in_k():
    for dtype in ("f16", "bf16"):
        narrow, wide = targets.MMA_ATOMS[f"m16n8k8.{dtype}"], targets.MMA_ATOMS[f"m16n8k16.{dtype}"]
        step = Layout.identity("register", 1, "k")
        assert wide.a.divide(narrow.a).project("k").select("register") == step
        assert narrow.a * step == wide.a and narrow.b * step == wide.b and narrow.c == wide.c


def test_accumulators_of_one_matmul_are_laid_out_as_the_next_ones_operand():
    """C of two n8 atoms is A of m16n8k16, element by element: what chains two matmuls in registers."""
    two = targets.MMA_ATOMS["m16n8k8.f16"].c * Layout.identity("register", 1, "n")
    assert two.rename(outs={"n": "k"}) == targets.MMA_ATOMS["m16n8k16.f16"].a


# -- ldmatrix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_is_what_the_ptx_manual_says(count):
    plain, transposed = targets.ldmatrix(count), targets.ldmatrix(count, transposed=True)
    for lane, i in product(range(32), range(2 * count)):
        row, cols = lane // 4, 2 * (lane % 4)
        assert plain(lane=lane, register=i) == {"row": row, "col": cols + i % 2, "matrix": i // 2}
        assert transposed(lane=lane, register=i) == {"row": cols + i % 2, "col": row, "matrix": i // 2}
    for lane in range(8 * count):
        assert targets.ldmatrix_addresses(count)(lane=lane) == {"row": lane % 8, "matrix": lane // 8}
    assert plain.is_bijective and transposed.is_bijective and targets.ldmatrix_addresses(count).is_bijective


def in_tile(ldmatrix, tile):
    """(register, lane) of an ldmatrix -> the tile whose 8 x 8 blocks are its matrices."""
    return ldmatrix.compose(Layout.parse(tile))


def test_ldmatrix_loads_the_operands_of_both_atoms():
    wide, narrow = targets.MMA_ATOMS["m16n8k16.f16"], targets.MMA_ATOMS["m16n8k8.f16"]
    a16 = "(row: m0 m1 m2, col: k0 k1 k2, matrix: m3 k3) -> (m 4, k 4)"
    b16 = "(row: n0 n1 n2, col: k0 k1 k2, matrix: k3) -> (n 3, k 4)"
    assert in_tile(targets.ldmatrix(4), a16) == wide.a
    assert in_tile(targets.ldmatrix(2), b16) == wide.b
    assert in_tile(targets.ldmatrix(2), "(row: m0 m1 m2, col: k0 k1 k2, matrix: m3) -> (m 4, k 3)") == narrow.a
    assert in_tile(targets.ldmatrix(1), "(row: n0 n1 n2, col: k0 k1 k2, matrix:) -> (n 3, k 3)") == narrow.b


def test_transposed_ldmatrix_loads_operands_that_are_stored_the_other_way_round():
    atom = targets.MMA_ATOMS["m16n8k16.f16"]
    rows_are_k = "(row: k0 k1 k2, col: n0 n1 n2, matrix: k3) -> (n 3, k 4)"
    assert in_tile(targets.ldmatrix(2, transposed=True), rows_are_k) == atom.b
    assert in_tile(targets.ldmatrix(2), rows_are_k) != atom.b


# -- the stored order --------------------------------------------------------------------------------------------------

ORDERS = {  # how each atom's A fragments tile the weights of one or, for wgmma's four warps, four stored tiles
    "m16n8k8.f16": (targets.MMA_ATOMS["m16n8k8.f16"].a, 3, 0),
    "m16n8k16.f16": (targets.MMA_ATOMS["m16n8k16.f16"].a, 2, 0),
    "m16n8k8.bf16": (targets.MMA_ATOMS["m16n8k8.bf16"].a, 3, 0),
    "m16n8k16.bf16": (targets.MMA_ATOMS["m16n8k16.bf16"].a, 2, 0),
    "wgmma.m64k16": (targets.WGMMA_A, 2, 2),
}


# Which weight a lane's code c = 8 s + 2 r + half is (lowbitvm.chunk): half `half` of register r of k16 step s.
CODES = Layout.from_function(
    lambda code, lane: {
        "n": (lane >> 2) + 8 * (code >> 1 & 1),
        "k": 16 * (code >> 3) + 2 * (lane & 3) + (code & 1) + 8 * (code >> 2 & 1),
    },
    {"code": 5, "lane": 5},
    {"n": 4, "k": 6},
)


@pytest.mark.parametrize(("a", "steps", "warps"), ORDERS.values(), ids=ORDERS)
def test_the_stored_order_feeds_the_a_operand_without_shuffles(a, steps, warps):
    """Where each operand register's code comes from: its own lane, its own warp's tile, and one place in the chunk."""
    stored = CODES * Layout.identity("tile", warps, "n")
    operand = a.rename(outs={"m": "n"}) * Layout.identity("step", steps, "k")
    source = operand.compose(stored.inverse())
    lanes = source.project("lane")
    assert lanes.select("lane") == Layout.identity("lane", 5, "lane")
    assert lanes.slice(lane=0).rank == 0
    if warps:
        assert source.project("tile").select("warp") == Layout.identity("warp", warps, "tile")
    assert source.project("tile").select("register", "lane", "step").rank == 0
    codes = source.project("code").select("register", "step")
    assert codes.is_bijective and source.project("code").rank == codes.rank


def test_neighbouring_codes_are_the_halves_of_an_operand_register():
    operand = targets.MMA_ATOMS["m16n8k16.f16"].a.rename(outs={"m": "n"}) * Layout.identity("step", 2, "k")
    source = operand.compose(CODES.inverse())
    for step, element in product(range(4), range(8)):
        assert source(register=element, step=step, lane=9) == {"code": 8 * step + element, "lane": 9}


@pytest.mark.parametrize("dtype", ["u1", "u4", "i5", "bp7", "f6e3m2", "nf4"])
def test_pack_stores_codes_in_the_stored_order(dtype):
    n, k, code_type = 40, 150, CODE_TYPES[dtype]
    stored = np.random.default_rng(0).integers(0, 1 << code_type.bits, (n, k)).astype(np.uint8)
    packed = pack(
        code_type.codes(stored.astype(np.int16)), np.ones((n, 1), np.float16), None, Format(dtype, group="channel")
    )
    assert packed.words.shape == (3, 3, 32 * code_type.bits)
    positions = order(code_type).positions
    tile_n, tile_k, lane, code, bit = np.indices((3, 3, 32, 32, code_type.bits))
    position = positions[code, bit]
    places = np.array([word_place(code_type.bits, word) for word in range(code_type.bits)])
    start, width, index = np.moveaxis(places[position >> 5], -1, 0)
    bits = packed.words[tile_n, tile_k, start + lane * width + index] >> (position & 31).astype(np.uint32) & 1
    at = CODES.apply(lane=lane[..., 0], code=code[..., 0])
    padded = np.zeros((48, 192), np.int64)
    padded[:n, :k] = stored
    found = (bits.astype(np.int64) << bit).sum(-1)
    assert (found == padded[16 * tile_n[..., 0] + at["n"], 64 * tile_k[..., 0] + at["k"]]).all()
