"""What ptxas says about single instructions: many to a module, each in a kernel of its own."""

import re
from collections.abc import Sequence

from cuda.bindings import nvjitlink

HEADER = """.version {version}
.target {target}
.address_size 64
.const .align 16 .b8 table[64];
"""
# Every kernel has the registers of legality_forms.REGISTERS and four lines, so that a line number names the kernel.
REGISTERS = (
    ".reg .pred %p<8>; .reg .b8 %c<16>; .reg .b16 %h<32>; .reg .b32 %r<40>; .reg .f32 %f<32>; .reg .b64 %d<32>; "
    ".reg .f64 %g<32>;"
)
EXTRAS = {
    "%q": " .reg .b128 %q<8>;",
    "frame": " .local .align 16 .b8 frame[64];",
}  # where used: .b128 needs .version 8.3
KERNEL = """.visible .entry k{number}(.param .b32 number) {{ {registers}
.shared .align 128 .b8 smem[1024];
{instruction};
L: ret; }}
"""


def module(instructions: Sequence[str], target: str, version: float) -> str:
    """PTX with one kernel per instruction."""
    kernels = []
    for n, instruction in enumerate(instructions):
        registers = REGISTERS + "".join(text for mark, text in EXTRAS.items() if mark in instruction)
        kernels.append(KERNEL.format(number=n, registers=registers, instruction=instruction))
    return HEADER.format(target=target, version=version) + "".join(kernels)


def rejected(instructions: Sequence[str], target: str, version: float) -> dict[str, str]:
    """The instructions that ptxas rejects, each with its first message.

    ptxas stops at a syntax error and at what it calls fatal; those are taken out and the rest asked again. An error at
    the end of the module keeps it from generating code for thousands of kernels: what it checks of single instructions
    comes before that. An error in what ptxas expands some instructions to does not say of which: halves find out.
    """
    found: dict[str, str] = {}
    left = list(instructions)
    while True:
        log = _log(module(left, target, version) + ".visible .entry last() { bogus.u32 %r1; }\n", target)
        if "<builtin>" in log:
            return found | _rejected_of_halves(left, target, version, log)
        messages = _messages(log)
        stopping = set()
        for line, severity, message in messages:
            number = (line - HEADER.count("\n") - 1) // KERNEL.count("\n")
            if number < len(left):
                found.setdefault(left[number], message)
                if severity == "fatal" or "Parsing error" in message:
                    stopping.add(left[number])
        if not stopping:
            assert any("bogus" in message for *_, message in messages), messages[:3]
            return found
        left = [instruction for instruction in left if instruction not in stopping]


def _rejected_of_halves(instructions: Sequence[str], target: str, version: float, log: str) -> dict[str, str]:
    if len(instructions) == 1:
        return {instructions[0]: log}
    middle = len(instructions) // 2
    return rejected(instructions[:middle], target, version) | rejected(instructions[middle:], target, version)


def assembles(text: str, target: str) -> bool:
    return not _log(text, target)


def _messages(log: str) -> list[tuple[int, str, str]]:
    found = re.findall(r"line (\d+); (error|fatal)\s*: (.*)", log)
    return [(int(line), severity, message) for line, severity, message in found]


def _log(text: str, target: str) -> str:
    options = [f"-arch={target}"]
    data = text.encode()
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "forms.ptx")
        nvjitlink.complete(handle)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        return log.rstrip(b"\0").decode(errors="replace") or str(error)
    finally:
        nvjitlink.destroy(handle)
    return ""
