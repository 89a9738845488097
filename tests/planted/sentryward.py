"""Where SentryWard's verdict is not simply "clean" for a clean kernel and "bug" for one with a bug, and why."""

# Verdict, reason, and per kernel the names of the bugs; "" is the clean kernel, EVERY it and all its bugs.
EVERY = ("*",)
GROUPS: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = (
    (
        "integer_range",
        "Refused, as bugs are, but so are addresses and barrier numbers that it cannot bound.",
        {
            "scan": ("the guard of the first elements is off by one",),
            "named_ring": ("a barrier number above 15",),
            "scale": ("a vector store that is not aligned",),
            "local_array": ("one pop too many",),
        },
    ),
    (
        "clean",
        "Its subject is order: it knows no bounds, alignment or initialisation, nor copies that are left in flight.",
        {
            "transpose": (
                "the mask of the last row is off by one",
                "the mask of the last column is off by one",
                "the mask of the output's last row is off by one",
                "two pitches for one tile",
                "a pitch that does not fit the tile",
            ),
            "double_buffer": (
                "the prefetch runs one tile too far",
                "the second buffer is larger than its memory",
            ),
            "swizzled_tile": ("a swizzle on the writing side only",),
            "gemm": (
                "one copy too many is issued and never awaited",
                "a tail of k that is copied whole",
                "accumulators that nothing cleared",
            ),
            "gather": (
                "a copy to rows that are not aligned to 16 bytes",
                "a copy from 8 bytes into a chunk",
                "an index that was never loaded",
                "an index in elements where bytes are wanted",
            ),
            "scale": (
                "the mask of a vector is off by one",
                "no mask at all",
                "a vector load that is not aligned",
                "a store to an input",
                "an output that is read",
                "a value that was never computed",
                "an offset in words where bytes are wanted",
                "an offset that is negative before it is widened",
            ),
            "local_array": (
                "one push too few",
                "elements of 4 bytes, 2 bytes apart",
            ),
            "dynamic_shared": (
                "dynamic shared memory that is too small",
                "a row that nothing wrote",
                "a shared address without its base",
            ),
            "unpack": ("a shift by all bits of a word",),
        },
    ),
    (
        "clean",
        "It takes an ldmatrix for an order among the lanes' accesses before it.",
        {
            "swizzled_tile": ("lanes read what others stored without a bar.warp.sync",),
        },
    ),
    (
        "atomic_add_memory_semantics_unsupported",
        "Atomic additions are not modelled.",
        {
            "histogram": EVERY,
            "counter": EVERY,
            "accumulate": EVERY,
            "atomics of blocks whose warps met by part masks": EVERY,
            "blocks that meet in atomics alone": EVERY,
        },
    ),
    (
        "bug",
        "It sees no order in shuffles, votes and relaxed accesses, and waits at barriers for warps that have left.",
        {
            "a shuffle that all lanes take part in orders them": EVERY,
            "a vote that all lanes take part in orders them": EVERY,
            "warps that have nothing to do leave before a barrier of the others": EVERY,
            "lanes that have left count for nothing at a barrier": EVERY,
            "a relaxed flag that guards no data": EVERY,
        },
    ),
    (
        "bug",
        "It does not know which lane stores what of a fragment, and takes every lane to store all of it.",
        {
            "wmma": ("",),
        },
    ),
    (
        "control_predicate_not_static",
        "A branch depends on what memory holds: locks, flags, tickets, indices.",
        {
            "split_k": EVERY,
            "last_block": EVERY,
            "grid_barrier": EVERY,
            "lock": (
                "",
                "a lock taken without acquiring",
                "a lock given back without releasing",
                "a lock of block scope between blocks",
                "a lock given back by a plain store",
                "a lock that is never given back",
                "a lock given back before the store",
            ),
            "flag": (
                "",
                "a flag set before the data is visible",
                "a flag seen and no fence before the data is read",
                "a flag set before other lanes have stored",
                "a flag set by a plain store",
                "a flag awaited by plain loads",
            ),
            "aggregated_atomics": EVERY,
            "scale": (
                "an index that was never computed",
                "a predicate that was never set",
            ),
            "checked_gather": EVERY,
            "release and acquire are transitive over three blocks": EVERY,
            "a release by red and an acquire by ld, through a release sequence": EVERY,
            "fences on both sides of relaxed accesses": EVERY,
            "volatile accesses between membars": EVERY,
            "one thread acquires for its block, and a barrier passes it on": EVERY,
            "the block with the last ticket reads what all wrote": EVERY,
            "lanes of a warp take turns by a lock in shared memory": EVERY,
            "lanes of a warp take turns by a lock in global memory": EVERY,
            "a sum of floats by compare and swap": EVERY,
            "a grid meets again and again at one counter": EVERY,
            "a barrier that counts orders as well": EVERY,
            "blocks draw tiles from a queue": EVERY,
            "the last warp of a block to draw a ticket sums up": EVERY,
            "a scan over blocks by decoupled look-back": EVERY,
            "a grid barrier in the way of cooperative groups": EVERY,
        },
    ),
    (
        "atomic_memory_semantics",
        "Atomics are not modelled.",
        {
            "lock": ("no lock around an update",),
        },
    ),
    (
        "ptx_execution_not_supported",
        "Refused for a lane, or the source of a shuffle, outside the mask, but in words that stand for much else.",
        {
            "tail": (
                "a shuffle from lanes that take no part",
                "a shuffle whose mask leaves out lanes that execute it",
                "a vote whose mask leaves out a lane that takes part",
            ),
            "halves": (
                "the masks of two halves are exchanged",
                "a shuffle across the halves",
            ),
            "elected": ("an election whose mask leaves out lanes that take part",),
        },
    ),
    (
        "collective-participant-mismatch",
        "Not all lanes of a mask execute the same instruction: the bug itself, or lanes that meet from two branches.",
        {
            "tail": (
                "a shuffle of the whole warp in a branch of some lanes",
                "a reduction of the whole warp in a branch of some lanes",
            ),
            "both sides of a branch meet at a bar.warp.sync": EVERY,
        },
    ),
    (
        "unexpected_exception",
        "It fails at a vote that only some of its members execute.",
        {
            "tail": ("a vote in a branch that not all its members take",),
        },
    ),
    (
        "partial_warp_launch",
        "Blocks of less than a warp are not modelled.",
        {
            "parameters": EVERY,
        },
    ),
    (
        "execution_step_budget_exceeded",
        "It runs a loop that waits for another warp one lane at a time, until its limit.",
        {
            "a flag in shared memory between two warps": EVERY,
        },
    ),
)

# What it refuses a kernel for, where that is the bug: a source larger than its copy, a lane outside its mask, a thread
# count that no barrier has, an mbarrier that nothing initialised, a row that is not aligned, a local array's end.
DIAGNOSES = frozenset(
    (
        "cp_async_source_size",
        "invalid_warp_sync_mask",
        "invalid_named_barrier",
        "missing-barrier-initialization",
        "matrix_memory_row_alignment",
        "pointer_extent",
    )
)

NO_AGREEMENT = {
    (kernel, bug): found for found, _, kernels in GROUPS for kernel, bugs in kernels.items() for bug in bugs
}
