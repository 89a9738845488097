"""How the threads of a kernel may be ordered: what the core has to follow to judge its races."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator.decode import Row

# How strong an access is; core.h. 0 is weak.
RELAXED, ACQUIRE, RELEASE, CTA_SCOPE = 1, 2, 4, 8
COLLECTIVE = ("shfl", "vote", "match", "redux", "redux_f32", "elect", "warp_sync")  # the last operand is a member mask
FULL = 0xFFFFFFFF
GLOBAL = (0, 1)  # spaces whose addresses may be global: generic ones too
FIRST_FLOAT = 12  # of the core's atomic operations, atomics.c


@dataclass(frozen=True)
class Ordering:
    """`blocks`: blocks may see one another's effects while they run. `exact`: threads may be ordered otherwise than by
    barriers of whole warps and blocks; or they are if a barrier's number of threads is not the block's, `counts`.
    `float_red`: the order of blocks decides how sums are rounded."""

    blocks: bool = False
    exact: bool = False
    float_red: bool = False
    counts: frozenset[int] = field(default_factory=frozenset)

    def is_exact(self, threads: int) -> bool:
        return self.exact or any(count != -(-threads // 32) * 32 for count in self.counts)


def ordering(rows: "list[Row]", constants: dict[int, int]) -> Ordering:
    """`constants`: the values of the slots that hold one."""
    known = constants | _moved(rows, constants)
    blocks = exact = float_red = False
    counts: set[int] = set()
    for row in rows:
        if row.op in ("load", "store", "atomic"):
            strength, space = row.mod[2] >> 8, row.mod[2] & 0xFF
            wide = space in GLOBAL and not strength & CTA_SCOPE
            atomic = row.op == "atomic"
            exact |= bool(strength & (ACQUIRE | RELEASE)) or (strength > 0 and not atomic)
            blocks |= wide and (bool(strength & (ACQUIRE | RELEASE)) or (strength > 0 if not atomic else row.dsts > 0))
            float_red |= atomic and (row.mod[1] >= FIRST_FLOAT or row.mod[0] not in (4, 8))
        elif row.op == "fence":
            exact, blocks = True, blocks or bool(row.mod[0])
        elif row.op.startswith(("mbarrier", "cluster")) or row.op == "cp_arrive":
            exact = True
        elif row.op in COLLECTIVE:
            exact |= known.get(row.operands[-1][0]) != FULL
        elif row.op in ("barrier", "barrier_of_threads") and row.mod[1]:
            count = known.get(row.operands[row.dsts + 1][0])
            exact |= count is None or row.mod[0] == 1
            counts.add(count or 0)
    return Ordering(blocks, exact, float_red, frozenset(counts))


def _moved(rows: "list[Row]", constants: dict[int, int]) -> dict[int, int]:
    """The values of registers that are only ever given one constant."""
    values: dict[int, int | None] = {}
    for row in rows:
        for slot, _ in row.operands[: row.dsts]:
            value = constants.get(row.operands[1][0]) if row.op.startswith("mov") and len(row.operands) == 2 else None
            values[slot] = value if slot not in values or values[slot] == value else None
    return {slot: value for slot, value in values.items() if value is not None}
