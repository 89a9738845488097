"""The catalogue of user errors: a stable code, what was asked, the numbers that clash, and the fix."""

CATALOGUE: dict[str, str] = {
    "ARGUMENT_INVALID": "An argument's value is outside what the function accepts.",
    "ASSEMBLER_FAILED": "nvJitLink rejected the PTX.",
    "ASSEMBLER_MISSING": "The assembler (nvidia-nvjitlink with cuda-bindings) is not installed on this system.",
    "CLUSTER_INVALID": "A cluster of blocks does not fit the grid, or the GPU has none.",
    "CODES_OUT_OF_RANGE": "A weight code or zero point does not fit its number format.",
    "CONTEXT_LOST": "A kernel that failed, or a fault of the GPU, has left a CUDA context in which nothing runs.",
    "DEVICE_MISMATCH": "Tensors of one call live on different devices.",
    "DEVICE_UNAVAILABLE": "The requested device cannot be used on this machine.",
    "DTYPE_MISMATCH": "A value has another dtype than the operation takes.",
    "EMULATOR_MISSING": "The emulator's C core was not built when the package was installed.",
    "FORMAT_INVALID": "A Format's parts do not fit together.",
    "FORMAT_UNSUPPORTED": "The format is known but this version cannot pack or run it yet.",
    "GRADIENT_UNSUPPORTED": "Low-bit operators have no gradient.",
    "GRID_TOO_LARGE": "The launch grid exceeds what the hardware takes.",
    "GROUP_INDIVISIBLE": "in_features is not a multiple of the group size.",
    "KERNEL_INVALID": "A DSL kernel breaks a rule of the tile IR.",
    "KERNEL_UNSUPPORTED": "The kernel is legal, but this version's code generator cannot lower it.",
    "LAUNCH_FAILED": "The CUDA driver refused or aborted a launch.",
    "LAYOUT_INDIVISIBLE": "One layout is no whole multiple of another.",
    "LAYOUT_INVALID": "A layout's bases or dimensions are inconsistent.",
    "LAYOUT_NOT_INVERTIBLE": "A layout that must be invertible is not.",
    "SHAPE_MISMATCH": "Two shapes that must agree do not.",
    "SHARED_MEMORY_EXCEEDED": "A tile needs more shared memory than the target has.",
    "TARGET_UNKNOWN": "The GPU target does not exist or is not supported.",
    "TENSOR_NOT_CONTIGUOUS": "A tensor that must be contiguous is not.",
    "TILE_INVALID": "A tile's size is not usable.",
    "TOOL_MISSING": "An optional tool or extra is not installed.",
    "TUNING_FAILED": "A kernel could not be tuned.",
    "VALUE_ESCAPES_LOOP": "A value made inside lb.range is used after the loop.",
}


class LowbitvmError(Exception):
    """A mistake in what the caller asked for; `code` is a key of CATALOGUE.

    `problem` states what was asked and the numbers that clash, `fix` what to do, `location` is "file:line" of the
    caller's source where it is known.
    """

    def __init__(self, code: str, problem: str, fix: str, location: str | None = None) -> None:
        assert code in CATALOGUE, f"{code} is not in the catalogue"
        self.code, self.problem, self.fix, self.location = code, problem, fix, location
        where = f" ({location})" if location else ""
        super().__init__(f"{code}: {problem}{where}. Fix: {fix}.")

    def __reduce__(self) -> tuple[object, ...]:
        """Errors go from one process to another by their parts, not by their text."""
        return type(self), (self.code, self.problem, self.fix, self.location)
