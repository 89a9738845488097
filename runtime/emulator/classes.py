"""Classes of PTX instructions, for counting: what part of the machine an instruction keeps busy."""

import re

# In the order of reports. Memory is told apart by the state space that the instruction names.
CLASSES = (
    "integer", "float", "half", "double", "special", "conversion", "predicate", "move", "matrix", "exchange",
    "shared", "global", "generic", "local", "const", "param", "copy", "atomic", "barrier", "control",
)  # fmt: skip

# By mnemonic, whatever the types.
BY_MNEMONIC = {
    "control": "bra brx call exit ret trap brkpt nanosleep pmevent setmaxnreg griddepcontrol",
    "barrier": "bar barrier membar fence mbarrier",
    "exchange": "shfl vote match redux activemask elect movmatrix",
    "matrix": "mma wgmma tcgen05",
    "copy": "cp",
    "atomic": "atom red multimem",
    "conversion": "cvt szext",
    "move": "mov selp slct cvta isspacep istypep mapa getctarank createpolicy",
    "special": "rcp sqrt rsqrt sin cos lg2 ex2 tanh",
}
_BY_MNEMONIC = {mnemonic: kind for kind, mnemonics in BY_MNEMONIC.items() for mnemonic in mnemonics.split()}

SPACES = ("shared", "global", "local", "const", "param")
MEMORY = {"ld", "ldu", "st", "ldmatrix", "stmatrix", "prefetch", "prefetchu", "discard", "applypriority"}

# By the instruction's first type.
BY_TYPE = {
    "half": {"f16", "f16x2", "bf16", "bf16x2"},
    "float": {"f32", "f32x2", "tf32"},
    "double": {"f64"},
    "predicate": {"pred"},
}

_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)")


def class_of(name: str) -> str:
    """The class of a mnemonic with its qualifiers, such as "ld.shared.v4.u32"."""
    mnemonic, *qualifiers = name.split(".")
    if mnemonic == "wmma":
        if "mma" in qualifiers:
            return "matrix"
        mnemonic = "ld"
    if mnemonic == "mov" and "pred" in qualifiers:
        return "predicate"
    if mnemonic in _BY_MNEMONIC:
        return _BY_MNEMONIC[mnemonic]
    if mnemonic in MEMORY:
        spaces = [space for q in qualifiers if (space := q.split("::")[0]) in SPACES]
        return spaces[0] if spaces else "shared" if mnemonic.endswith("matrix") else "generic"
    for kind, types in BY_TYPE.items():
        if not types.isdisjoint(qualifiers):
            return kind
    return "integer"


def matrix_form(name: str) -> tuple[str, int] | None:
    """Shape and types of a matrix instruction ("m16n8k16.f32.f16.f16.f32") and the products that it sums, or None.

    A sparse one multiplies half of its k; mma.m8n8k4 on f16 is four products side by side (PTX ISA, "mma.m8n8k4").
    """
    mnemonic, *qualifiers = name.split(".")
    if class_of(name) != "matrix" or mnemonic not in ("mma", "wmma", "wgmma"):
        return None
    found = next((match for q in qualifiers if (match := _SHAPE.fullmatch(q))), None)
    if found is None:  # wgmma's fences
        return None
    plain = [q for q in qualifiers if q not in ("mma", "mma_async", "sync", "aligned", "row", "col", found[0])]
    products = int(found[1]) * int(found[2]) * int(found[3])
    if "sp" in plain or "sp::ordered_metadata" in plain:
        products //= 2
    if mnemonic == "mma" and found[0] == "m8n8k4" and "f16" in plain:
        products *= 4
    return ".".join((found[0], *plain)), products
