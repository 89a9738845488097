"""Which targets and PTX versions have an instruction: the manual's "Target ISA Notes" and "PTX ISA Notes".

A target is a compute capability with a suffix: plain targets run on everything later, "f" on their family (the same
major number, from theirs on), "a" on the very one. Every row below is tested against ptxas.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from lowbitvm.runtime.emulator.syntax import Instruction, Name, Operand

# Targets and the first .version that knows them.
TARGETS = {
    "sm_75": 6.3, "sm_80": 7.0, "sm_86": 7.1, "sm_87": 7.4, "sm_88": 9.0, "sm_89": 7.8, "sm_90": 7.8, "sm_90a": 8.0,
    "sm_100": 8.6, "sm_100a": 8.6, "sm_100f": 8.8, "sm_103": 8.8, "sm_103a": 8.8, "sm_103f": 8.8, "sm_107": 9.4,
    "sm_107a": 9.4, "sm_107f": 9.4, "sm_110": 9.0, "sm_110a": 9.0, "sm_110f": 9.0, "sm_120": 8.7, "sm_120a": 8.7,
    "sm_120f": 8.8, "sm_121": 8.8, "sm_121a": 8.8, "sm_121f": 8.8,
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`sm_103a` is Target(103, "a")."""

    number: int
    suffix: str

    @property
    def family(self) -> int:
        return self.number // 10

    def __str__(self) -> str:
        return f"sm_{self.number}{self.suffix}"

    def has(self, feature: str) -> bool:
        """Whether this target has what "80" (and later), "100f" (that family's f and a targets) or "100a" has."""
        wanted = parse_target("sm_" + feature)
        if wanted.suffix == "a":
            return self == wanted
        if wanted.suffix == "f":
            return self.suffix != "" and self.family == wanted.family and self.number >= wanted.number
        return self.number >= wanted.number


def parse_target(text: str) -> Target:
    match = re.fullmatch(r"sm_(\d+)([af]?)", text)
    assert match is not None, text
    return Target(int(match[1]), match[2])


def runs_on(target: str, arch: str) -> bool:
    """Whether PTX for `target` can be assembled for `arch`."""
    module, machine = parse_target(target), parse_target(arch)
    if module.suffix == "a":
        return machine == module
    if module.suffix == "f":
        return machine.family == module.family and machine.number >= module.number
    return machine.number >= module.number


@dataclass(frozen=True)
class Rule:
    """Instructions of one of `mnemonics` with all `words` among their qualifiers need one of `targets` and `version`.

    A target `89@8.1` counts from that version on. A word `a|b` is either of the two, `!a` is the absence of one;
    `operands=4` is the number of operands, `operand=pred` a last operand that is a predicate, `to=f16x2` the pair
    that a cvt converts to.
    """

    mnemonics: str
    words: str
    targets: str
    version: float

    def matches(self, words: frozenset[str]) -> bool:
        return all(has_words(words, word) for word in self.words.split())


def has_words(words: frozenset[str], word: str) -> bool:
    if word.startswith("!"):
        return word[1:] not in words
    return not words.isdisjoint(word.split("|"))


ANY = "75"
BLACKWELL = "100f 110f 120f"  # what every family of that generation has in its own targets
HALF_PAIRS = "bf16|bf16x2"
FP8 = "e4m3|e5m2"
MINI_FLOATS = "e3m2|e2m3|e2m1"

RULES = (
    # integers, logic, comparison
    Rule("add min max", "u16x2|s16x2", "90", 8.0),
    Rule("add", "sat u32|u16x2|s16x2", "107f 120f", 9.2),
    Rule("min max", "relu", "90", 8.0),
    Rule("bmsk szext", "", ANY, 7.6),
    Rule("lop3", "and|or", ANY, 8.2),
    Rule("set", "u32|s32 f16", ANY, 6.5),
    Rule("set setp", HALF_PAIRS, "90", 7.8),
    # float
    Rule("add sub", "f32 f16|bf16", "100", 8.6),
    Rule("fma", "f32 f16|bf16", "100", 8.6),
    Rule("add sub mul fma", "f32x2", "100", 8.6),
    Rule("add sub mul", HALF_PAIRS, "90", 7.8),
    Rule("fma", HALF_PAIRS, "80", 7.0),
    Rule("fma", "relu", "80", 7.0),
    Rule("fma", "oob", "90", 8.1),
    Rule("abs", "f16|f16x2", ANY, 6.5),
    Rule("abs neg", HALF_PAIRS, "80", 7.0),
    Rule("min max", "f16|f16x2|bf16|bf16x2|NaN", "80", 7.0),
    Rule("min max", "xorsign", "86", 7.2),
    Rule("min max", "f32 operands=4", "100", 8.8),
    Rule("tanh", "", ANY, 7.0),
    Rule("ex2", "f16|f16x2", ANY, 7.0),
    Rule("tanh ex2", HALF_PAIRS, "90", 7.8),
    # conversions
    Rule("cvt", "pack", ANY, 6.5),
    Rule("cvt", "bf16", "80", 7.0),
    Rule("cvt", "bf16 f32 !rn !rz !rm !rp", "80", 7.1),
    Rule("cvt", "bf16 !f32", "90", 7.8),
    Rule("cvt", "f16x2|bf16x2 f32", "80", 7.0),
    Rule("cvt", "relu", "80", 7.0),
    Rule("cvt", "satfinite f16", ANY, 8.1),
    Rule("cvt", "satfinite f32 bf16|f16x2|bf16x2|tf32", "80", 8.1),
    Rule("cvt", "tf32", "80", 7.0),
    Rule("cvt", "tf32 !rna", "90", 7.8),
    Rule("cvt", "tf32 !rna satfinite", "100", 8.6),
    Rule("cvt", "e4m3x2|e5m2x2", "90 89@8.1", 7.8),
    Rule("cvt", "e2m3x2|e3m2x2|e2m1x2|ue8m0x2", BLACKWELL, 8.6),
    Rule("cvt", "to=e4m3x2|to=e5m2x2 bf16x2", BLACKWELL, 9.1),
    Rule("cvt", "to=e2m3x2|to=e3m2x2|to=e2m1x2 f16x2|bf16x2", BLACKWELL, 9.1),
    Rule("cvt", "to=bf16x2 e4m3x2|e5m2x2|e2m3x2|e3m2x2|e2m1x2", BLACKWELL, 9.2),
    Rule("cvt", "s2f6x2", "100a 103a 110a 120a 121a", 9.1),
    Rule("cvt", "rs", "100a 103a", 8.7),
    # exchange within a warp
    Rule("redux", "", "80", 7.0),
    Rule("redux", "f32", "100f", 8.6),
    Rule("elect", "", "90", 8.0),
    # matrix moves
    Rule("ldmatrix", "", ANY, 6.5),
    Rule("ldmatrix", "m16n16|m8n16", BLACKWELL, 8.6),
    Rule("stmatrix", "", "90", 7.8),
    Rule("stmatrix", "m16n8", BLACKWELL, 8.6),
    Rule("movmatrix", "", ANY, 7.8),
    # mma
    Rule("mma", "m8n8k4", ANY, 6.4),
    Rule("mma", "m16n8k8|m8n8k16|m8n8k32", ANY, 6.5),
    Rule("mma", "m16n8k4|m16n8k16|m16n8k32|m16n8k64|m16n8k128|m16n8k256|m8n8k128", ANY, 7.0),
    Rule("mma", "m16n8k16|m16n8k32|m16n8k64|m16n8k128|m16n8k256", "80", 7.0),
    Rule("mma", "bf16|tf32|f64", "80", 7.0),
    Rule("mma", "f64 !m8n8k4", "90", 7.8),
    Rule("mma", "b1 and", "80", 7.1),
    Rule("mma", FP8, "89", 8.4),
    Rule("mma", FP8 + " m16n8k16|f16", "89", 8.7),
    Rule("mma", "kind::f8f6f4", BLACKWELL, 8.6),
    Rule("mma", "kind::f8f6f4 f16", BLACKWELL, 8.7),
    Rule("mma", MINI_FLOATS, "120f", 8.7),
    Rule("mma", "block_scale", "120f", 8.7),
    Rule("mma", "scale_vec::4X ue8m0", "120f", 9.1),
    Rule("mma", "sp", "80", 7.1),
    Rule("mma", "sp::ordered_metadata", "80", 8.5),
    Rule("mma", "sp::ordered_metadata e4m3|e5m2 f16", "120f", 8.7),
    Rule("mma", "sp::ordered_metadata kind::mxf4|kind::mxf4nvf4", "120a 121a", 8.7),
    Rule("wmma", "bf16|tf32|f64|m16n16k8", "80", 7.0),
    Rule("wmma", "b1 and", "80", 7.1),
    # moves and memory
    Rule("mov", "b128", ANY, 8.3),
    Rule("ld ldu st", "b128", ANY, 8.3),
    Rule("ld st", "v8", "100", 8.8),
    Rule("ld st", "v4 b64|u64|s64|f64", "100", 8.8),
    Rule("ld st prefetch applypriority discard createpolicy cp atom red", "L2::cache_hint", "80", 7.4),
    Rule("ld st", "L1::evict_first|L1::evict_last|L1::no_allocate|L1::evict_normal|L1::evict_unchanged", ANY, 7.4),
    Rule("ld cp", "L2::64B|L2::128B|L2::256B", ANY, 7.4),
    Rule("ld", "L2::256B", "80", 7.4),
    Rule("ld st", "L2::evict_first|L2::evict_last|L2::evict_normal", "100", 8.8),
    Rule("prefetch", "L2::evict_last|L2::evict_normal", "80", 7.4),
    Rule("applypriority discard createpolicy", "", "80", 7.4),
    Rule("ld st atom red isspacep cvta mbarrier", "shared::cta", ANY, 7.8),
    Rule("ld st atom red isspacep cvta mbarrier", "shared::cluster", "90", 7.8),
    Rule("ld", "param::entry", ANY, 8.3),
    Rule("ld st atom red fence", "cluster", "90", 7.8),
    Rule("isspacep cvta", "param", ANY, 7.7),
    Rule("mapa getctarank", "", "90", 7.8),
    # atomics
    Rule("atom red", HALF_PAIRS, "90", 7.8),
    Rule("atom red", "v2|v4|v8", "90", 8.1),
    Rule("atom", "b128", "90", 8.3),
    # asynchronous copies
    Rule("cp", "async", "80", 7.0),
    Rule("cp", "async operand=pred", "80", 7.5),
    # barriers and fences
    Rule("bar barrier", "cta", ANY, 7.8),
    Rule("barrier", "cluster", "90", 7.8),
    Rule("barrier", "cluster release|relaxed|acquire", "90", 8.0),
    Rule("fence", "proxy", ANY, 7.5),
    Rule("fence", "async|async::global|async.global|mbarrier_init", "90", 8.0),
    Rule("fence", "acquire|release !mbarrier_init", "90", 8.6),
    Rule("griddepcontrol", "", "90", 7.8),
    Rule("setmaxnreg", "", "90a " + BLACKWELL, 8.0),
    Rule("mbarrier", "", "80", 7.0),
    Rule("mbarrier", "test_wait parity", "80", 7.1),
    Rule("mbarrier", "arrive operands=3 !noComplete !expect_tx", "90", 7.8),
    Rule("mbarrier", "expect_tx|complete_tx|shared::cluster", "90", 8.0),
    Rule("mbarrier", "acquire|release|relaxed", "80", 8.0),
    Rule("mbarrier", "try_wait", "90", 7.8),
)

# Special registers, without their axis.
SPECIAL_REGISTERS = {
    **dict.fromkeys(("%clusterid", "%nclusterid", "%cluster_ctaid", "%cluster_nctaid"), ("90", 7.8)),
    **dict.fromkeys(("%cluster_ctarank", "%cluster_nctarank", "%is_explicit_cluster"), ("90", 7.8)),
    "%aggr_smem_size": ("90", 8.1),
    **dict.fromkeys(("%reserved_smem_offset_begin", "%reserved_smem_offset_cap"), ("80", 7.6)),
}

_BY_MNEMONIC: dict[str, list[Rule]] = {}
for _rule in RULES:
    for _mnemonic in _rule.mnemonics.split():
        _BY_MNEMONIC.setdefault(_mnemonic, []).append(_rule)


def module_problem(target: str, version: float) -> str | None:
    """What is wrong with a module's .target and .version, or None."""
    if not version:
        return "the module has no .version"
    if target not in TARGETS:
        return f"the target {target} is not known here; {', '.join(TARGETS)} are"
    if version < TARGETS[target]:
        return f"the target {target} needs .version {TARGETS[target]} or later, the module has {version}"
    return None


def illegal(
    instruction: Instruction, target: str, version: float, is_predicate: Callable[[Operand], bool]
) -> str | None:
    """What the instruction needs that the module's .target or .version lacks, or None."""
    operands = instruction.operands
    words = (*instruction.qualifiers, f"operands={len(operands)}")
    if instruction.mnemonic == "cp" and operands and is_predicate(operands[-1]):
        words = (*words, "operand=pred")
    if instruction.mnemonic == "cvt":
        words = (*words, *(f"to={word}" for word in [x for x in words if x.endswith("x2")][:1]))
    for operand in operands:
        name = operand.text.split(".")[0] if isinstance(operand, Name) else ""
        if name in SPECIAL_REGISTERS and (lacking := _lacking(*SPECIAL_REGISTERS[name], target, version)):
            return f"{name} needs {lacking}"
    lacking = _first_lacking(instruction.mnemonic, words, target, version)
    return lacking and f"{'.'.join((instruction.mnemonic, *instruction.qualifiers))} needs {lacking}"


@functools.lru_cache(maxsize=4096)
def _first_lacking(mnemonic: str, words: tuple[str, ...], target: str, version: float) -> str | None:
    present = frozenset(words)
    rules = (rule for rule in _BY_MNEMONIC.get(mnemonic, ()) if rule.matches(present))
    return next(filter(None, (_lacking(rule.targets, rule.version, target, version) for rule in rules)), None)


def _lacking(targets: str, version: float, target: str, have: float) -> str | None:
    """In words, which of a rule's requirements the module does not meet."""
    features = [feature.partition("@")[::2] for feature in targets.split()]
    if not any(parse_target(target).has(feature) and have >= float(since or 0) for feature, since in features):
        names = [
            f"sm_{feature}" + " or higher" * feature.isdigit() + (f" with .version {since}" if since else "")
            for feature, since in features
        ]
        return f"{' or '.join(names)}, the module is for {target}"
    return f".version {version} or later, the module has {have}" if have < version else None
