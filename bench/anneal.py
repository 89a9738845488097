"""Anneals the stored order of a float: python bench/anneal.py f5e3m1 --steps 20000000 --seed 1. Needs a C++ compiler.

Prints the best layout found so far and its instructions per chunk, as `lowbitvm.chunk.LAYOUTS` writes it.
"""

import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

import click

from lowbitvm.codegen import synthesis
from lowbitvm.codegen.convert import cost, held_by, layout_decoder, places
from lowbitvm.dtypes import CODE_TYPES

SOURCE = pathlib.Path(__file__).with_name("anneal.cpp")
AIMS = (50, 50)  # instructions per chunk, of bf16 without its multiplications


@click.command(help=__doc__)
@click.argument("weights", type=click.Choice([name for name, code in CODE_TYPES.items() if code.kind == "float"]))
@click.option("--words", type=int, help="Of a component, which the chunk has several of. By default all.")
@click.option("--aims", type=int, nargs=2, default=AIMS, show_default=True)
@click.option("--steps", type=int, default=5_000_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(weights: str, words: int | None, aims: tuple[int, int], steps: int, seed: int) -> None:
    code = CODE_TYPES[weights]
    words = words or code.bits
    acts = [act for act in ("f16", "bf16") if held_by(code, act)]
    firsts = [places(code, act)[0][0].place if act in acts else -1 for act in ("f16", "bf16")]
    for found in annealed([code.bits, words, *firsts, *aims, steps, seed], words):
        layout = synthesis.joined([synthesis.placed(code, found)] * (code.bits // words), words)
        counts = {act: sum(cost(layout_decoder(code, act, layout)).values()) for act in acts}
        print(counts, synthesis.text(layout), flush=True)


def annealed(numbers: list[int], words: int) -> Iterator[list[list[str]]]:
    """The words that the program of SOURCE prints, each set better than the one before."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/anneal"
        subprocess.run(["c++", "-O3", "-o", program, str(SOURCE)], check=True)
        with subprocess.Popen([program, *map(str, numbers)], stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            while running.stdout.readline():
                yield [running.stdout.readline().split() for _ in range(words)]


if __name__ == "__main__":
    main()
