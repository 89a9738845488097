"""The command `lowbitvm emulate`: kernel arguments written as text, arrays in files, findings as the exit status."""

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from rich.console import Console

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator

Array = np.ndarray[Any, np.dtype[Any]]

# Element types of buffers: PTX's names; numpy's are taken as well. numpy has no bf16: its 16-bit patterns stand for it.
DTYPES = {"f16": "float16", "bf16": "uint16", "f32": "float32", "f64": "float64"}
DTYPES |= {f"{kind}{bits}": f"uint{bits}" for kind in "bu" for bits in (8, 16, 32, 64)}
DTYPES |= {f"{kind}{bits}": f"int{bits}" for kind in "si" for bits in (8, 16, 32, 64)}

STRUCT = re.compile(r"(?P<bytes>hex:[^@]*|.*?\.bin)(?P<pointers>@.*)?", re.DOTALL)
TYPED = re.compile(r"(?P<name>.*?)(?::?(?P<dtype>[a-z]+\d+)\[(?P<shape>[\d, ]*)\])")

FORMS = """\b
4096  -1  0x10    a number; its width is the parameter's
0.5  1e-3  inf    a floating-point number
hex:00ff10        the bytes of a struct
params.bin        the same in a file
params.bin@8=x.npy@16=out=y.npy   with the addresses of arrays at bytes 8 and 16
x.npy             an array; the file stays as it is
out=y.npy         an array that is written back to its file
out=y.npy:f16[16,4096]   a new array without contents, written to the file
zeros:f32[1024]   an array of zeros that is kept nowhere
"""


class UsageError(click.ClickException):
    """What keeps a launch from happening."""

    exit_code = 2


@dataclass
class Buffer:
    """An array argument. `shape` is the file's, for numpy's 0-dimensional arrays are numbers to the emulator."""

    array: Array
    shape: tuple[int, ...]
    uninitialised: bool
    path: Path | None
    save: bool = False


@dataclass
class Struct:
    """The bytes of a struct, and the arrays whose addresses stand in it, by offset."""

    data: bytes
    pointers: dict[int, Buffer]


@dataclass
class Arguments:
    """Kernel arguments read from text; a file that is named twice is one array."""

    values: list[Any] = field(default_factory=list)
    files: dict[Path, Buffer] = field(default_factory=dict)
    buffers: dict[emulator.ArrayKey, Buffer] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Appends one argument, see FORMS. Raises UsageError."""
        value = self._value(text)
        if isinstance(value, Buffer):
            self.buffers[len(self.values)] = value
        if isinstance(value, Struct):
            self.buffers |= {(len(self.values), offset): buffer for offset, buffer in value.pointers.items()}
        self.values.append(value)

    def for_launch(self) -> list[Any]:
        return [_for_launch(value) for value in self.values]

    def _value(self, text: str) -> Any:
        if match := STRUCT.fullmatch(text):
            return self._struct(text, match["bytes"], match["pointers"] or "")
        if text.startswith("zeros:"):
            dtype, shape = _type(text, text.removeprefix("zeros:"))
            return Buffer(_zeros(text, dtype, shape), shape, uninitialised=False, path=None)
        if text.startswith("out="):
            return self._output(text)
        if text.endswith(".npy"):
            return self._file(text, Path(text))
        return _number(text)

    def _struct(self, text: str, source: str, pointers: str) -> Struct:
        """`pointers` is like @8=x.npy@16=out=y.npy."""
        data = _hex(text, source) if source.startswith("hex:") else _read(text, Path(source))
        found: dict[int, Buffer] = {}
        for part in pointers.split("@")[1:]:
            offset, _, value = part.partition("=")
            buffer = self._value(value) if re.fullmatch(r"0x[0-9a-fA-F]+|\d+", offset, re.ASCII) and value else None
            if not isinstance(buffer, Buffer):
                hint = f"{source}@8=x.npy"
                raise UsageError(f"--arg {text}: {part!r} places no array. Fix: write where and which, like {hint}.")
            found[int(offset, 16 if "x" in offset else 10)] = buffer
        return Struct(data, found)

    def _file(self, text: str, path: Path) -> Buffer:
        key = path.resolve()
        if key not in self.files:
            array = _load(text, path)
            self.files[key] = Buffer(np.ascontiguousarray(array), array.shape, uninitialised=False, path=path)
        if self.files[key].uninitialised:
            raise UsageError(f"--arg {text}: the file is another argument's new output. Fix: name another file.")
        return self.files[key]

    def _output(self, text: str) -> Buffer:
        name = text.removeprefix("out=")
        typed = TYPED.fullmatch(name)
        path = Path(typed["name"] if typed else name)
        if path.suffix != ".npy":
            raise UsageError(f"--arg {text}: an output is a numpy file. Fix: name it like out=y.npy.")
        _check_writable(path)
        if typed is None:
            if not path.exists():
                hint = f"out={path}:f16[16,4096]"
                raise UsageError(f"--arg {text}: there is no {path}. Fix: say what to make, like {hint}.")
            buffer = self._file(text, path)
        else:
            dtype, shape = _type(text, name.removeprefix(typed["name"]).removeprefix(":"))
            buffer = Buffer(_zeros(text, dtype, shape), shape, uninitialised=True, path=path)
            before = self.files.setdefault(path.resolve(), buffer)
            if (before.uninitialised, before.shape, before.array.dtype) != (True, shape, dtype):
                raise UsageError(f"--arg {text}: the file is another argument too. Fix: give both the same way.")
            buffer = before
        buffer.save = True
        return buffer

    def write(self) -> list[Path]:
        """Writes every output to its file; all are complete before the first is replaced."""
        outputs = [(buffer.path, buffer) for buffer in self.files.values() if buffer.save and buffer.path]
        replace_files({path: _saver(buffer) for path, buffer in outputs})
        return [path for path, _ in outputs]


def replace_files(writers: Mapping[Path, Callable[[BinaryIO], None]]) -> None:
    """Writes files beside their names and then renames them, so that a failure leaves the old ones."""
    done: list[tuple[str, Path]] = []
    try:
        for path, write in writers.items():
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            done.append((temporary, path))
            with os.fdopen(handle, "wb") as stream:
                write(stream)
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
        for temporary, path in done:
            Path(temporary).replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    finally:
        for temporary, _ in done:
            Path(temporary).unlink(missing_ok=True)


def run(
    file: Path,
    entry: str | None,
    arguments: Sequence[str],
    launch: Mapping[str, Any],
    report_file: Path | None,
    json_file: Path | None,
    quiet: bool,
) -> int:
    """Loads, launches and reports; returns the exit status: 0 clean, 1 findings. Raises UsageError (status 2).

    `launch` has the options of Module.launch. Outputs are written unless a finding stopped the launch.
    """
    for path in (report_file, json_file):
        if path is not None and str(path) != "-":
            _check_writable(path)
    module = _load_module(file)
    name = _entry(module, entry, file)
    parsed = Arguments()
    for text in arguments:
        parsed.add(text)
    stopped = False
    try:
        report = module.launch(name, args=parsed.for_launch(), **launch)
    except emulator.EmulatorError as error:
        report, stopped = error.report, True
    except LowbitvmError as error:
        raise UsageError(str(error)) from error
    _write_reports(report, report_file, json_file)
    written = [] if stopped else parsed.write()
    errors = Console(stderr=True, highlight=False)
    _describe(report, errors, quiet or json_file == Path("-"), stopped)
    if not stopped:
        _name_lost_writes(report, parsed)
    if written and not quiet:
        click.echo(f"wrote {', '.join(map(str, written))}", err=True)
    return 1 if report.findings else 0


def _name_lost_writes(report: emulator.Report, parsed: Arguments) -> None:
    """Says which files stay as they are although the kernel wrote to their arrays."""
    for key, buffer in parsed.buffers.items():
        first = next(k for k, other in parsed.buffers.items() if other is buffer)
        if report.counters.arrays[first].written and not buffer.save and buffer.path:
            place = f"{key[0]} at byte {key[1]}" if isinstance(key, tuple) else key
            hint = f"out={buffer.path} would keep that"
            click.echo(f"note: the kernel wrote to argument {place}; {buffer.path} stays as it is, {hint}", err=True)


def _describe(report: emulator.Report, errors: Console, quiet: bool, stopped: bool) -> None:
    if not quiet:
        click.echo("".join(report.printed), nl=False)
        Console().print(report)
        if stopped:
            errors.print("stopped at the first finding: no output was written (--on-finding collect goes on)")
        return
    for finding in report.findings:
        click.echo(str(finding), err=True)


def _write_reports(report: emulator.Report, report_file: Path | None, json_file: Path | None) -> None:
    texts: dict[Path, str] = {}
    if report_file is not None:
        texts[report_file] = report.to_html()
    if json_file is not None:
        texts[json_file] = report.to_json(indent=1) + "\n"
    if Path("-") in texts:
        click.echo(texts.pop(Path("-")), nl=False)
    replace_files({path: _text_writer(text) for path, text in texts.items()})


def _text_writer(text: str) -> Callable[[BinaryIO], None]:
    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    return write


def _saver(buffer: Buffer) -> Callable[[BinaryIO], None]:
    def write(stream: BinaryIO) -> None:
        np.save(stream, buffer.array.reshape(buffer.shape), allow_pickle=False)

    return write


def _load_module(file: Path) -> emulator.Module:
    try:
        return emulator.load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as PTX text: {error}") from error
    except emulator.PtxError as error:
        place = f"{file}:{error.line}:{error.column}"
        raise UsageError(f"{place}: {error.problem}\n    {error.text.strip()}") from error
    except LowbitvmError as error:
        raise UsageError(str(error)) from error


def _entry(module: emulator.Module, entry: str | None, file: Path) -> str:
    names = ", ".join(module.programs) or "none"
    if entry is None and len(module.programs) == 1:
        return next(iter(module.programs))
    if entry is None:
        raise UsageError(f"{file} has several kernels or none. Fix: choose one with --entry: {names}.")
    if entry not in module.programs:
        raise UsageError(f"{file} has no kernel {entry!r}. Fix: choose one with --entry: {names}.")
    return entry


def _for_launch(value: Any) -> Any:
    if isinstance(value, Struct):
        return emulator.struct(value.data, {offset: _device_buffer(b) for offset, b in value.pointers.items()})
    return _device_buffer(value) if isinstance(value, Buffer) else value


def _device_buffer(buffer: Buffer) -> Any:
    array = buffer.array.reshape(-1) if buffer.array.ndim == 0 else buffer.array
    return emulator.output(array) if buffer.uninitialised else array


def _load(text: str, path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"--arg {text}: {path} cannot be read as a numpy file: {error}") from error
    return array


def _type(text: str, typed: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """`f16[16,4096]` as dtype and shape."""
    match = TYPED.fullmatch(typed)
    names = ", ".join(DTYPES)
    if match is None or match["name"]:
        raise UsageError(f"--arg {text}: {typed!r} is no type and shape. Fix: write it like f16[16,4096].")
    try:
        dtype: np.dtype[Any] = np.dtype(DTYPES.get(match["dtype"], match["dtype"]))
    except TypeError:
        raise UsageError(f"--arg {text}: there is no type {match['dtype']}. Fix: use one of {names}.") from None
    return dtype, tuple(int(size) for size in match["shape"].split(",") if size.strip())


def _zeros(text: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise UsageError(f"--arg {text}: the array cannot be made: {error}") from error


def _read(text: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--arg {text}: {path} cannot be read: {error}") from error


def _hex(text: str, digits: str) -> bytes:
    try:
        return bytes.fromhex(digits.removeprefix("hex:"))
    except ValueError as error:
        raise UsageError(f"--arg {text}: {error}. Fix: give two hexadecimal digits per byte.") from None


def _number(text: str) -> int | float:
    for convert in (lambda: int(text, 0), lambda: float(text)):
        try:
            return convert()
        except ValueError:
            pass
    raise UsageError(f"--arg {text}: this is no argument. Fix: use one of these forms:\n{FORMS.removeprefix(chr(8))}")


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}. Fix: make it first.")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise UsageError(f"{path} cannot be written. Fix: name another file.")
