"""Files that commands write: refused before the work whose results they are to hold, not after minutes of it."""

import os
from pathlib import Path
from typing import Any

import click


class OutputFile(click.Path):
    """The type of an option that names a file to write; its directory has to be there and to take files."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, or a usage error that says why it cannot be written."""
        file = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not file.parent.is_dir():
            self.fail(f"{file} cannot be written: there is no directory {file.parent}", param, ctx)
        if not os.access(file.parent, os.W_OK):
            self.fail(f"{file} cannot be written: {file.parent} takes no files of yours", param, ctx)
        return file


def write_text(file: Path, text: str) -> None:
    """Writes a file; what keeps it from that is an error of the command."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error}") from error
