"""A kernel that decodes one chunk per thread, and chunks in which every code stands at every place."""

import ml_dtypes
import numpy as np

from lowbitvm import chunk, targets
from lowbitvm.codegen.convert import TableDecoder
from lowbitvm.codegen.ptx import Builder, memory, vector

NATIVE = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
REGISTERS = 16


def kernel(decoder, threads, target="sm_80", entry="decode"):
    """PTX of an entry: words u32[threads, bits] -> fragments u32[threads, 16]; a codebook's table comes third."""
    b = Builder()
    tid = b.op("mov.u32", "r", "%tid.x")
    names = ["words", "fragments", "table"][: 3 if isinstance(decoder, TableDecoder) else 2]
    words, fragments, *table = (
        b.op("cvta.to.global.u64", "rd", b.op("ld.param.u64", "rd", f"[{name}]")) for name in names
    )
    constants = _fill(b, decoder, tid, threads, table[0]) if table else decoder.constants(b)
    bits = decoder.code.bits
    source = b.op("mad.wide.u32", "rd", tid, 4 * bits, words)
    loaded = [b.op("ld.global.b32", "r", memory(source, 4 * i)) for i in range(bits)]
    registers = [register for step in decoder.emit(b, loaded, constants) for register in step]
    target_address = b.op("mad.wide.u32", "rd", tid, 4 * REGISTERS, fragments)
    for i in range(0, REGISTERS, 4):
        b.do("st.global.v4.b32", memory(target_address, 4 * i), vector(registers[i : i + 4]))
    return b.module(entry, targets.get(target), [f".u64 {name}" for name in names], threads)


def _fill(b, decoder, tid, threads, table):
    """Copies the table to shared memory; returns the decode's constants."""
    shared = b.op("mov.u32", "r", "smem")
    done, more = b.label("done"), b.label("more")
    offset = b.op("shl.b32", "r", tid, 2)
    b.place(more)
    finished = b.op("setp.ge.u32", "p", offset, decoder.table_bytes)
    b.do("bra", done, when=finished)
    value = b.op("ld.global.b32", "r", memory(b.op("add.u64", "rd", table, b.op("cvt.u64.u32", "rd", offset))))
    b.do("st.shared.b32", memory(b.op("add.u32", "r", shared, offset)), value)
    b.do("add.u32", offset, offset, 4 * threads)
    b.do("bra", more)
    b.place(done)
    b.do("bar.sync", 0)
    return decoder.constants(b, b.op("mov.u32", "r", "%laneid"), shared)


def words_of(code, stored):
    """The words u32[..., bits] of chunks of stored codes [..., 32], by the positions of the order."""
    positions = chunk.order(code).positions
    words = np.zeros((*stored.shape[:-1], code.bits), np.uint32)
    for (place, bit), position in np.ndenumerate(positions):
        words[..., position >> 5] |= ((stored[..., place] >> bit & 1) << (position & 31)).astype(np.uint32)
    return words


def every_code_everywhere(code):
    """Stored codes [chunks, 32] in which each place has each of the 2**bits codes, among others and among equals."""
    count = 1 << code.bits
    place, first = np.arange(32), np.arange(count)[:, None]
    mixed = np.random.default_rng(code.bits).permutation(count)[(first + 7 * place) % count]
    opposite = np.where(place == first % 32, first, ~first & (count - 1))
    return np.concatenate([np.broadcast_to(first, (count, 32)), mixed, opposite])


def expected(decoder, stored, table=None):
    """The exact float64 fragment values [chunks, 16, 2] by the code type's values."""
    code = decoder.code
    factor = np.tile(np.array(decoder.factors)[:, None], (8, 2))
    offset = np.tile(np.array(decoder.offsets)[:, None], (8, 2))
    pairs = stored.reshape(-1, REGISTERS, 2)
    if code.is_linear:
        return factor * (pairs + offset)
    return factor * (
        np.asarray(table).astype(NATIVE[decoder.act]).astype(float)[pairs] if table is not None else code.values[pairs]
    )


def values_of(decoder, fragments):
    """The float64 values [chunks, 16, 2] of fragment registers u32[chunks, 16]."""
    halves = np.ascontiguousarray(fragments).view(np.uint16).reshape(-1, REGISTERS, 2)
    return halves.view(NATIVE[decoder.act]).astype(np.float64)
