"""The file that the owner of a GPU sends: results, versions, what the GPU is; no names of people or places."""

import getpass
import json
import re
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbitvm.bench.about import about as machine
from lowbitvm.doctor import states
from lowbitvm.runtime import driver

QUERY = (
    "name,driver_version,compute_cap,memory.total,ecc.mode.current,mig.mode.current,power.limit,clocks.max.sm,"
    "clocks.max.memory,clocks.sm,clocks.memory,temperature.gpu,clocks_throttle_reasons.active"
)
_PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\~][\w.@+~-]*(?:[/\\][\w.@+~-]+)+")


def about(index: int | None) -> dict[str, Any]:
    """Of the machine and the software, and the GPU's name and its driver where there is one."""
    found = machine()
    if index is not None:
        found |= {"gpu": driver.device_name(index), "driver": driver.version()}
    return found


def pack(archive: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes an archive of JSON files by name, and what `lowbitvm doctor` and nvidia-smi say. Raises OSError."""
    texts = {name: json.dumps(_scrubbed(result), indent=1) for name, result in results.items()}
    texts["doctor.txt"] = "\n".join(f"{part}: {scrub(state)}" for part, state in states().items())
    texts["nvidia-smi.txt"] = scrub(_nvidia_smi())
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in texts.items():
            file.writestr(zipfile.ZipInfo(name), text + "\n", zipfile.ZIP_DEFLATED)


def _nvidia_smi() -> str:
    """What it says of the GPUs; not of processes, nor of serial numbers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "nvidia-smi is not installed"
    made = subprocess.run(
        [tool, f"--query-gpu={QUERY}", "--format=csv"], capture_output=True, text=True, timeout=60, check=False
    )
    return made.stdout if made.returncode == 0 else f"nvidia-smi failed: {made.stdout}{made.stderr}"


def scrub(text: str) -> str:
    """A text without paths, and without the names of the user and of the machine."""
    text = _PATH.sub("<path>", text)
    for name, stands in ((_user(), "<user>"), (socket.gethostname(), "<host>")):
        if len(name) > 1:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stands, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a process whose user has no name
        return ""


def _scrubbed(value: Any) -> Any:
    """Every text in a JSON value."""
    if isinstance(value, Mapping):
        return {key: _scrubbed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(part) for part in value]
    return scrub(value) if isinstance(value, str) else value
