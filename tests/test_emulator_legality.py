"""The emulator loads what ptxas assembles: over targets, PTX versions, and malformed instructions."""

import fnmatch
import functools
import itertools
import re

import pytest

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator
from tests.legality_forms import instructions
from tests.legality_mutants import sample as mutants_of
from tests.legality_ptxas import assembles, module, rejected

FORMS = instructions()
NEWEST = 9.3
TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100a", "sm_103f", "sm_120", "sm_120a", "sm_120f")
VERSIONS = (
    *(("sm_75", version) for version in (6.3, 6.4, 6.5, 7.0, 7.3, 7.4, 7.5, 7.6, 7.7, 7.8, 8.0, 8.1, 8.2, 8.3)),
    *(("sm_80", version) for version in (7.0, 7.1, 7.4, 7.5, 7.6, 7.8, 8.0, 8.1, 8.3, 8.5)),
    *(("sm_86", version) for version in (7.1, 7.2)),
    *(("sm_89", version) for version in (7.8, 8.1, 8.3, 8.4, 8.6, 8.7)),
    *(("sm_90", version) for version in (7.8, 8.0, 8.1, 8.3, 8.5, 8.6)),
    ("sm_90a", 8.0),
    *(("sm_100a", version) for version in (8.6, 8.7, 8.8)),
    *(("sm_120a", version) for version in (8.7, 8.8, 9.0, 9.1, 9.2)),
    ("sm_120f", 8.8),
)

# Legal instructions that the emulator lacks.
LACKING = ("fma.rn.oob*",)
NOT_IMPLEMENTED = {form for form in FORMS if any(fnmatch.fnmatchcase(form, pattern) for pattern in LACKING)}
IMPLEMENTED = [instruction for instruction in FORMS if instruction not in NOT_IMPLEMENTED]

MNEMONICS = sorted({re.split("[. ]", form)[0] for form in IMPLEMENTED})
# What ptxas takes by oversight and the emulator refuses: predicates among numbers, of which ptxas's code generator dies
# or makes something; operands and modifiers of which the manual knows nothing; constants as destinations.
OVERSIGHTS = (
    r".*\{([^}]*, )?%p\d",
    r"(movmatrix|mma)\b.* %p\d",
    r"v\w+\.\S+ 7, ",
    r"cvt\.\S+\.bf16x2 %c1, (%p1|%f1|\{%r1\})",
    r"(addc|subc)\.sat\.",
    r"rcp\.ftz\.rn\.f64 ",
    r"testp\.(f32|f64) ",
    r"atom\.global\.exch\.b128 %q1, \[%d31\], %q2, %q2",
    r"v(absdiff|add|mad|max|min|set|shl|shr|sub)\.\S+ 7, ",
    r"cvt\.\S+\.e2m1x2\.bf16x2 %c1, (%p|%f|\{)",
)


def problem(instruction: str, target: str, version: float = NEWEST) -> str | None:
    """Why the emulator does not load an instruction, or None."""
    try:
        emulator.load(module([instruction], target, version))
    except emulator.PtxError as error:
        return error.problem
    return None


def unloadable(sample: list[str], target: str, version: float = NEWEST) -> dict[str, str]:
    """The instructions that the emulator does not load, each with the reason.

    All are tried as one kernel: where that has no problem, none of them has one. Halves find out which do.
    """
    reason = problem(";\n".join(sample), target, version) if sample else None
    if reason is None:
        return {}
    if len(sample) == 1:
        return {sample[0]: reason}
    middle = len(sample) // 2
    return unloadable(sample[:middle], target, version) | unloadable(sample[middle:], target, version)


def differences(sample: list[str], target: str, version: float = NEWEST) -> list[str]:
    """Instructions on which the emulator and ptxas disagree, with the words of the one that rejects."""
    verdicts = rejected(sample, target, version)
    refused = unloadable([instruction for instruction in sample if instruction not in verdicts], target, version)
    found = [f"{instruction}: ptxas takes it, the emulator says {reason}" for instruction, reason in refused.items()]
    for instruction, reason in verdicts.items():
        if problem(instruction, target, version) is None:
            found.append(f"{instruction}: ptxas says {reason}, the emulator takes it")
    return found


@functools.cache
def gated_forms() -> set[str]:
    """The forms that not every target and version has."""
    return set(rejected(FORMS, "sm_75", 6.3))


@pytest.mark.parametrize("target", TARGETS)
def test_an_instruction_loads_for_the_targets_that_have_it(target: str) -> None:
    assert differences(IMPLEMENTED, target) == []


@pytest.mark.parametrize(("target", "version"), VERSIONS)
def test_an_instruction_loads_from_the_ptx_version_that_introduced_it(target: str, version: float) -> None:
    assert differences([form for form in IMPLEMENTED if form in gated_forms()], target, version) == []


def test_legal_instructions_that_are_not_implemented_are_exactly_those_listed() -> None:
    refused = set()
    for target in ("sm_75", "sm_100a", "sm_120a"):
        verdicts = rejected(FORMS, target, NEWEST)
        refused |= unloadable([instruction for instruction in FORMS if instruction not in verdicts], target).keys()
    nowhere = set(rejected(FORMS, "sm_100a", NEWEST)) & set(rejected(FORMS, "sm_120a", NEWEST))
    assert sorted(refused ^ (NOT_IMPLEMENTED - nowhere)) == []


def test_ptxas_assembles_the_forms_it_does_not_reject() -> None:
    """`rejected` ends its modules with an error; this compiles one to the end."""
    verdicts = rejected(FORMS, "sm_75", NEWEST)
    legal = [instruction for instruction in FORMS if instruction not in verdicts]
    assert assembles(module(legal, "sm_75", NEWEST), "sm_75")


@functools.cache
def illegal_forms(target: str) -> dict[str, str]:
    return rejected(FORMS, target, NEWEST)


def mutants(mnemonic: str, target: str) -> list[str]:
    legal = [
        form for form in IMPLEMENTED if form not in illegal_forms(target) and re.match(rf"{mnemonic}( |\.|$)", form)
    ]
    return mutants_of(legal)


@pytest.mark.parametrize("mnemonic", MNEMONICS)
@pytest.mark.parametrize("target", ["sm_100a", "sm_120a"])
def test_a_changed_instruction_loads_if_and_only_if_ptxas_takes_it(mnemonic: str, target: str) -> None:
    sample = mutants(mnemonic, target)
    oversights = [mutant for mutant in sample if any(re.match(pattern, mutant) for pattern in OVERSIGHTS)]
    assert differences([mutant for mutant in sample if mutant not in oversights], target) == []
    assert [mutant for mutant in oversights if problem(mutant, target) is None] == []


def test_ptxas_takes_what_the_emulator_calls_an_oversight() -> None:
    changed = [mutant for mnemonic in MNEMONICS for mutant in mutants(mnemonic, "sm_100a")]
    for pattern in OVERSIGHTS:
        sample = [mutant for mutant in changed if re.match(pattern, mutant)]
        assert len(rejected(sample, "sm_100a", NEWEST)) < len(sample), pattern


@pytest.mark.parametrize(
    "instruction",
    [
        *("setp.eq.u32 _, %r1, %r2", "setp.eq.u32 %p1|_, %r1, %r2", "setp.eq.u32 _|%p1, %r1, %r2"),
        *("setp.eq.u32 _|_, %r1, %r2", "shfl.sync.idx.b32 _|%p1, %r1, 1, 31, -1", "elect.sync %r1|_, -1"),
        *("shfl.sync.idx.b32 %r1|_, %r1, 1, 31, -1", "lop3.and.b32 _|%p1, %r1, %r2, %r3, 5, %p2"),
        *("lop3.and.b32 %r1|_, %r1, %r2, %r3, 5, %p2", "match.all.sync.b32 _|%p1, %r1, -1"),
        *("match.all.sync.b32 %r1|_, %r1, -1", "elect.sync _|%p1, -1", "vote.sync.ballot.b32 _, %p1, -1"),
        *("atom.global.add.u32 _, [%d31], %r1", "atom.global.v2.f32.add {%f1, _}, [%d31], {%f4, %f5}"),
        *("mbarrier.arrive.b64 _, [%r31]", "mbarrier.pending_count.b64 _, %d1", "mov.u32 _, %r1", "add.u32 _, %r1, 1"),
        *("mbarrier.test_wait.b64 _, [%r31], %d1", "mov.b64 {%r1, _}, %d1", "mov.b64 {_, _}, %d1"),
        *("st.global.v2.u32 [%d31], {%r1, _}", "st.global.u32 [%d31], _", "ld.global.v2.u32 {%r1, _}, [%d31]"),
        *("ld.global.u32 _, [%d31]", "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1, _}, [%r31]"),
    ],
)
def test_a_result_may_be_discarded_where_ptxas_allows_it(instruction: str) -> None:
    assert differences([instruction], "sm_100a") == []


# Registers of every type as the elements of vectors: one of another type, or all.
VECTORS = (
    "ld.global.v2.u32 {$, $}, [%d1]",
    "ld.global.v2.f32 {$, $}, [%d1]",
    "st.global.v2.b16 [%d1], {$, $}",
    "mov.b64 %d1, {$, $}",
    "mov.b32 {$, $}, %r1",
    "atom.global.v2.add.f32 {$, $}, [%d1], {%f1, %f2}",
    "atom.global.v2.add.noftz.bf16x2 {$, $}, [%d1], {$, $}",
    "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {$, $}, {%x0, %x1, %x2, %x3}, {$, $}, {%x0, %x1}",
    "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {$, $}, {%x1}, {%f1, %f2, %f3, %f4}",
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%x1, %x2, %x3, %x0}, {%x1, %x2, %x3, %x0}, {$, $}, "
    "{$, $, %x1, %x0}",
    "wmma.load.a.sync.aligned.row.m16n16k16.s8 {$, $}, [%d1], 16",
    "wmma.store.d.sync.aligned.row.m8n8k4.f64 [%d1], {$, $}, 8",
    "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {$, $}, [%r1]",
)
CLASSES = {
    "b8": "c",
    "u8": "uc",
    "b16": "h",
    "u16": "uh",
    "f16": "eh",
    "b32": "y",
    "s32": "sr",
    "f32": "f",
    "f16x2": "e",
}
CLASSES |= {"b64": "d", "u64": "ud", "f64": "g"}


@pytest.mark.parametrize("template", VECTORS)
def test_the_registers_of_a_vector_are_those_that_ptxas_takes(template: str) -> None:
    declared = "; ".join(f".reg .{kind} %{name}_<4>" for kind, name in CLASSES.items())
    forms = []
    for name, other in itertools.product(CLASSES.values(), repeat=2):
        registers = itertools.cycle((f"%{name}_1", f"%{other}_2"))
        text = re.sub(r"\$", lambda _, given=registers: next(given), template)
        forms.append(f"{{ {declared}; .reg .b32 %x<4>; {text}; }} mov.u32 %r1, %r1")
    assert differences(forms, "sm_100a") == []


@pytest.mark.parametrize(("target", "version"), [("sm_100f", 8.7), ("sm_90a", 7.8), ("sm_60", 8.0), ("sm_999", 8.0)])
def test_a_target_that_its_ptx_version_does_not_know_is_refused(target: str, version: float) -> None:
    assert problem("ret", target, version) is not None


@pytest.mark.parametrize(
    ("target", "arch"),
    [
        *(("sm_80", arch) for arch in ("sm_75", "sm_80", "sm_86", "sm_90a", "sm_120f")),
        *(("sm_90a", arch) for arch in ("sm_90", "sm_90a", "sm_100a")),
        *(("sm_100f", arch) for arch in ("sm_100", "sm_100a", "sm_103", "sm_103f", "sm_110f", "sm_120")),
        *(("sm_120a", arch) for arch in ("sm_120", "sm_120a", "sm_120f", "sm_121a")),
        *(("sm_120f", arch) for arch in ("sm_120", "sm_120a", "sm_121", "sm_121f", "sm_103f")),
    ],
)
def test_ptx_launches_on_the_architectures_it_assembles_for(target: str, arch: str) -> None:
    text = module(["ret"], target, NEWEST)
    legal = assembles(text, arch)
    kernel = emulator.load(text)
    if legal:
        kernel.launch("k0", (1,), (32,), [0], arch=arch)
    else:
        with pytest.raises(LowbitvmError, match="does not run on"):
            kernel.launch("k0", (1,), (32,), [0], arch=arch)


@pytest.mark.parametrize(
    "instruction",
    [
        "cvt.f64.bf16.rp %g1, %h1",
        "cvt.s8.bf16.rpi %c1, %h1",
        "mul.f64.rn %g1, %g2, %g3",
        "fma.rn.bf16.relu %h1, %h2, %h3, %h4",
        "atom.global.v4.f32.add {%f0, %f1, %f2, %f3}, [%d31], {%f4, %f5, %f6, %f7}",
        "atom.v2.f32.add {%f0, %f1}, [%d31], {%f4, %f5}",
        "ld.global.b32.v2 {%r0, %r1}, [%d31]",
        "set.eq.f16.ftz.f16 %h1, %h2, %h3",
    ],
)
def test_modifiers_may_stand_behind_types(instruction: str) -> None:
    """The manual writes some of its own examples so."""
    assert rejected([instruction], "sm_100a", NEWEST) == {} and problem(instruction, "sm_100a") is None


def test_an_error_names_what_the_instruction_needs() -> None:
    with pytest.raises(
        emulator.PtxError, match=r"needs sm_90 or higher or sm_89 or higher with .version 8.1, the module is for sm_80"
    ) as error:
        emulator.load(module(["cvt.rn.f16x2.e4m3x2 %r1, %h1"], "sm_80", NEWEST))
    assert "cvt.rn.f16x2.e4m3x2" in error.value.text
    with pytest.raises(emulator.PtxError, match=r"needs \.version 7\.0 or later, the module has 6\.5"):
        emulator.load(module(["tanh.approx.f32 %f1, %f2"], "sm_75", 6.5))
