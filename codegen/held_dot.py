"""`dot` for many rows of activations: every warp decodes all weights that it multiplies, into registers.

Where the tensor cores outrun shared memory: several warps decode the same codes, but those take far fewer accesses than
16-bit weights that one warp stores and several load. Codes are loaded a unit ahead and decoded when it begins.
"""

from lowbitvm.codegen.pipeline import Pipeline
from lowbitvm.codegen.scales import ByteRows
from lowbitvm.codegen.shared_dot import SharedDot
from lowbitvm.codegen.state import State
from lowbitvm.codegen.weights import CHUNK_K
from lowbitvm.ir import Op

PART = 4  # n8 tiles of short segments whose products are in registers together


class HeldDot(SharedDot):
    """A `SharedDot` whose fragments stay in registers."""

    def _allocate(self, state: State, pipeline: Pipeline, op: Op) -> None:
        """Takes nothing."""

    def _decoding(self) -> tuple[int, int]:
        return self.state.warps // self.state.warps_m, self.row_tiles

    def _emit_bases(self) -> None:
        """Emits nothing; names the registers of a unit's codes, which an iteration hands on to the next."""
        chunks, words = self.pipeline.unit.k // CHUNK_K, self.format.bits
        self.held = [
            [[self.state.builder.register("r") for _ in range(words)] for _ in range(chunks)]
            for _ in range(self.row_tiles)
        ]
        self.addends: dict[tuple[int, int], list[str]] = {}  # of the period, by row tile and segment

    def prime(self) -> None:
        """Emits the load of the first unit's codes."""
        self.pipeline.wait(self.pipeline.unit.ahead - 1, 0)
        self._hold(0)
        self._sum_rows(0)

    def emit(self, accumulators: list[str]) -> None:
        """Emits the decode of the current unit, the load of the next one's codes, and the products."""
        number, unit = self.pipeline.number, self.pipeline.unit
        if number % unit.period == 0:
            self._begin_period()
        self.fragments = [
            [made for chunk, words in enumerate(chunks) for made in self._made(words, number, t, chunk, self.addends)]
            for t, chunks in enumerate(self.held)
        ]
        self._hold(number + 1)
        if self.segment < unit.k:
            self._by_parts(accumulators)
        else:
            for k in range(0, unit.k, self.atom.k):
                self._step(accumulators, k)
        self._sum_rows(number + 1)

    def _by_parts(self, accumulators: list[str]) -> None:
        """Emits the products of the current unit, some n8 tiles at a time: numbers of short segments take registers."""
        number = self.pipeline.number
        fenced = self.converted or not self.sums  # with other row sums ptxas does better without
        for start in range(0, self.pipeline.unit.k, self.segment):
            if self.sums and self.converted:
                self.state.builder.do("bar.warp.sync", 0xFFFFFFFF)
            self.scales = self._loaded_scales(start)
            for first in range(0, self.columns, PART):
                columns = range(first, min(first + PART, self.columns))
                if fenced:  # `Dot.emit` says why
                    self.state.builder.do("bar.warp.sync", 0xFFFFFFFF)
                for k in range(start, start + self.segment, self.atom.k):
                    self._multiply_by(number, k, columns)
                self._flush(accumulators, number, start // self.segment, columns)

    def _begin_period(self) -> None:
        """Emits the loads of a period's scales that codes are multiplied with: their slot is filled anew in it."""
        self.addends, scales = {}, self.rows["scales"]
        if isinstance(scales, ByteRows):
            scales.loaded.clear()  # of another turn of the loop
        if self.fused is not None:
            for segment in range(scales.segments):
                scales.load(self.pipeline.slot, segment * self.pipeline.unit.span // scales.segments)

    def _fragment(self, number: int, t: int, k: int) -> list[str]:
        return self.fragments[t][k // self.atom.k]

    def _hold(self, number: int) -> None:
        """Emits the load of a unit's codes."""
        for t, chunks in enumerate(self.held):
            for chunk, registers in enumerate(chunks):
                for register, word in zip(
                    registers, self.words.words(self.pipeline.slot_of(number), t, chunk), strict=True
                ):
                    self.state.builder.do("mov.b32", register, word)
