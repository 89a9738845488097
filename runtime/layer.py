"""A linear layer as the tuner sees it: the problem that its records are found by, and the tiles that it may have."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.plan import chosen_tile, linear_plan
from lowbitvm.runtime.tuned import Problem, Value, bucket
from lowbitvm.tile import Tile

LEAST_ROWS = 8  # of a tile: fewer rows take the same one
NAMES = tuple(field.name for field in fields(Tile))


@dataclass(frozen=True)
class Layer:
    """A linear layer y (m, n) = x (m, k) w^T on a target, of one weight or of two (with a gate); see `linear_plan`."""

    format: Format
    m: int
    n: int
    k: int
    target: str
    act: str = "f16"
    gate: bool = False
    permuted: bool = False

    @classmethod
    def of(cls, problem: Problem, target: str) -> "Layer":
        """The layer that a problem of the database was made of."""
        m, n, k = (int(problem[name]) for name in ("m", "n", "k"))
        fmt = Format.parse(str(problem["weights"]))
        return cls(fmt, m, n, k, target, gate="gate" in problem, permuted="permuted" in problem)

    @property
    def rows(self) -> int:
        """The rows that the layer is tuned with: the largest m that shares its record."""
        return self.m if self.m <= 1 else max(LEAST_ROWS, bucket(self.m))

    @property
    def problem(self) -> dict[str, int | str]:
        """What the database looks the layer up by. What follows the product and the dtype of x do not matter to it."""
        sizes: dict[str, int | str] = {"m": self.rows, "n": self.n, "k": self.k, "weights": str(self.format)}
        return sizes | {name: 1 for name in ("gate", "permuted") if getattr(self, name)}

    @property
    def plan(self) -> Tile:
        """The tile that the layer has without tuning."""
        target = targets.get(self.target)
        return linear_plan(self.m, self.n, self.k, self.format, target, False, self.permuted, self.gate)

    def allows(self, tile: Tile) -> bool:
        """Whether the layer's kernel may have a tile, as far as that is known before it is compiled."""
        try:
            chosen_tile(self.format, targets.get(self.target), self.permuted, 1 + self.gate, **asdict(tile))
        except LowbitvmError:
            return False
        return True

    def tile(self, config: Mapping[str, Value]) -> Tile | None:
        """The tile of a record; None where it is none that the layer may have."""
        if set(config) != set(NAMES) or not all(type(value) is int for value in config.values()):
            return None
        tile = Tile(**{name: int(config[name]) for name in NAMES})
        return tile if self.allows(tile) else None
