"""`dot` for many rows of activations: decoded weights are shared, but a warp keeps its own ones in registers, too.

It loads only what the other warp decoded. Of its row tiles those that it decodes come first as long as the loop runs,
so which registers the sums of a row tile are in depends on the warp; the sums change places when the loop ends.
"""

from lowbitvm.codegen.shared_dot import SharedDot
from lowbitvm.codegen.weights import CHUNK_K, packed_array
from lowbitvm.ir import Op
from lowbitvm.tile import CONVERTED_BITS

KEEPERS = 2  # warps that multiply the same weights


def has_registers(dot: Op) -> bool:
    """Whether there are registers to keep weights in: the numbers of several groups of a unit leave none."""
    fmt = packed_array(dot.operands[1].operands[0].operands[0])[1]
    return isinstance(fmt.group, str) or fmt.group >= CHUNK_K or fmt.scale_dtype.bits == CONVERTED_BITS


class KeptDot(SharedDot):
    """A `SharedDot` of KEEPERS warps that keep what they decode; for tiles to which nothing else is added meanwhile."""

    def _emit_bases(self) -> None:
        super()._emit_bases()
        b, steps = self.state.builder, self.pipeline.unit.k // self.atom.k
        tiles = range(self.words.row_tiles)
        self.kept = [[[b.register("r") for _ in range(4)] for _ in range(steps)] for _ in tiles]
        second = b.op("and.b32", "r", self.state.tid, 32)
        self.second = b.op("setp.ne.s32", "p", second, 0)  # of the two warps, which are neighbours

    def _read_base(self, lanes: list[int], step: int, own: int) -> str:
        """Emits the address of the lane's part of what the other of the two warps decodes."""
        mine = self.state.linear(self.state.tid, lanes + self.state.by_warp(step, own))
        return str(self.state.scalar("add", self.state.smem, self.state.builder.op("xor.b32", "r", mine, own)))

    def enter(self, accumulators: list[str]) -> None:
        super().enter(accumulators)
        self._exchange(accumulators)

    def leave(self, accumulators: list[str]) -> None:
        super().leave(accumulators)
        self._exchange(accumulators)

    def _exchange(self, accumulators: list[str]) -> None:
        """Emits, for the second of the two warps, the exchange of both halves of a tile's registers."""
        half = len(accumulators) // 2
        for low, high in zip(accumulators[:half], accumulators[half:], strict=True):
            chosen = [self._select(low, high), self._select(high, low)]
            for register, number in zip((low, high), chosen, strict=True):
                self.state.builder.do("mov.f32", register, number)

    def _fragment(self, number: int, t: int, k: int) -> list[str]:
        own = self.words.row_tiles
        return self.kept[t][k // self.atom.k] if t < own else super()._fragment(number, t - own, k)

    def _store(self, fragment: list[str], number: int, t: int, k: int) -> None:
        super()._store(fragment, number, t, k)
        for register, part in zip(self.kept[t][k // self.atom.k], fragment, strict=True):
            self.state.builder.do("mov.b32", register, part)

    def _loaded_scales(self, k: int) -> list[dict[str, list[str]]]:
        """As of `SharedDot`, in the order of the warp's accumulators."""
        loaded, own = super()._loaded_scales(k), self.words.row_tiles
        return [self._chosen(loaded[t], loaded[t ^ own]) for t in range(self.row_tiles)]

    def _chosen(self, first: dict[str, list[str]], second: dict[str, list[str]]) -> dict[str, list[str]]:
        """Emits the choice of a row tile's numbers: `first` for the first of the two warps, `second` for the other."""
        return {part: [self._select(*pair) for pair in zip(first[part], second[part], strict=True)] for part in first}

    def _select(self, first: str, second: str) -> str:
        if first == second:
            return first
        kind = "f" if first.startswith("%f") else "r"
        return self.state.builder.op(f"selp.{kind.replace('r', 'b')}32", kind, second, first, self.second)
