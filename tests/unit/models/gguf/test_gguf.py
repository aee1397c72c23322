"""A model goes to GGUF and comes back: the same numbers, the same tokens, the same identity."""

from __future__ import annotations

import json

import numpy as np
import pytest

from starai.core.errors import ConfigurationRefused, ModelFileRefused
from starai.models.catalog import open_model
from starai.models.checkpoints.opening import dense_config, open_checkpoint
from starai.models.codec import open_codec
from starai.models.gguf import blocks
from starai.models.gguf.export import KINDS, export_gguf
from starai.models.gguf.header import read_header
from starai.models.gguf.names import from_gguf, to_gguf, to_halves, to_pairs
from starai.models.gguf.rope import llama3_factors, llama3_rule

TEXT = "hello there, hehel! été 3.14 \n\n <think> 🙂"
Q = "model.layers.1.self_attn.q_proj.weight"
#: Relative error of Gaussian weights in each type.
ERRORS = {"bf16": 0.003, "q8_0": 0.006, "q4_0": 0.1}


def exported(folder, tmp_path, kind):
    path = tmp_path / f"{kind}.gguf"
    export_gguf(open_model(str(folder)), kind, path)
    return open_model(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back(folder, tmp_path, kind):
    """Every tensor has its name, shape and numbers again, queries and keys in their order."""
    manifest = exported(folder, tmp_path, kind)
    before, after = open_checkpoint(open_model(str(folder))), open_checkpoint(manifest)
    assert dict(after.shapes) == dict(before.shapes)
    for name in before.shapes:
        wanted = before.floats(name)
        off = np.linalg.norm(after.floats(name) - wanted) / np.linalg.norm(wanted)
        assert off < ERRORS[kind], name


def test_a_manifest_says_what_a_folder_says(folder, tmp_path):
    """Context, vocabulary, end, begin, size and architecture survive."""
    found, wanted = exported(folder, tmp_path, "q8_0"), open_model(str(folder))
    assert found.kind == "gguf"
    assert len(found.root) == 32
    for name in ("context_length", "vocab_size", "eos_token_ids", "bos_token_id"):
        assert getattr(found, name) == getattr(wanted, name)
    assert found.num_parameters == wanted.num_parameters
    assert found.architecture == wanted.architecture
    config = dense_config(found)
    original = json.loads((folder / "config.json").read_text())
    skipped = {"eos_token_id", "rms_norm_eps"}
    assert {k: config[k] for k in original.keys() - skipped} == {
        k: original[k] for k in original.keys() - skipped
    }
    assert config["rms_norm_eps"] == pytest.approx(1e-5)


def test_the_tokenizer_comes_back(folder, tmp_path):
    """Ids of text and conversation, and the text of ids, are the folder's."""
    wanted = open_codec(open_model(str(folder)))
    found = open_codec(exported(folder, tmp_path, "q8_0"))
    ids = wanted.encode(TEXT)
    assert found.encode(TEXT) == ids
    assert found.decode(ids) == wanted.decode(ids)
    messages = [{"role": "user", "content": "hello <|end|>"}]
    assert found.render_chat(messages) == wanted.render_chat(messages)
    assert ids[0] == 258


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_known_ways_to_cut_words_keep_their_names(folder, tmp_path, pre):
    """Each pre-tokenizer that has a name at llama.cpp goes there and back."""
    from starai.models.gguf.tokens import PRE_TOKENIZERS  # noqa: PLC0415

    path = folder / "tokenizer.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "pre_tokenizer": PRE_TOKENIZERS[pre]})
    )
    manifest = exported(folder, tmp_path, "q8_0")
    assert read_header(tmp_path / "q8_0.gguf").settings["tokenizer.ggml.pre"] == pre
    text = "It's 12345 words,\n\nor so"
    assert open_codec(manifest).encode(text) == open_codec(open_model(str(folder))).encode(text)


def test_q4_0_is_our_int4_code_by_code(folder, tmp_path):
    """The packed weight has exactly the file's values, and goes back without a changed byte."""
    manifest = exported(folder, tmp_path, "q4_0")
    checkpoint = open_checkpoint(manifest)
    assert checkpoint.is_packed(Q)
    packed = checkpoint.packed(Q)
    assert packed.kind == "int4"
    assert np.array_equal(packed.floats(), checkpoint.floats(Q))
    export_gguf(manifest, "q4_0", tmp_path / "again.gguf")
    again = read_header(tmp_path / "again.gguf").tensors["blk.1.attn_q.weight"]
    first = read_header(tmp_path / "q4_0.gguf").tensors["blk.1.attn_q.weight"]
    raw = (tmp_path / "again.gguf").read_bytes()
    assert (
        raw[again.begin :][: again.num_bytes]
        == (tmp_path / "q4_0.gguf").read_bytes()[first.begin :][: first.num_bytes]
    )


def test_the_ends_of_a_q4_0_file_are_finer(folder, tmp_path):
    """Embedding and output are Q8_0, norms floats, the rest Q4_0."""
    exported(folder, tmp_path, "q4_0")
    tensors = read_header(tmp_path / "q4_0.gguf").tensors
    kinds = {name: tensor.block.name for name, tensor in tensors.items()}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"


def test_q8_0_is_requantised_by_row(folder, tmp_path):
    """Our int8 has one scale a row: near the file's values, not equal to them."""
    checkpoint = open_checkpoint(exported(folder, tmp_path, "q8_0"))
    packed, floats = checkpoint.packed(Q), checkpoint.floats(Q)
    assert packed.kind == "int8"
    assert packed.scale.shape == (64,)
    assert np.abs(packed.floats() - floats).max() <= 0.51 * packed.scale.max()


@pytest.mark.parametrize("block", [blocks.Q8_0, blocks.Q4_0, blocks.BF16, blocks.F16, blocks.F32])
def test_encoding_is_undone_by_decoding(block):
    """What a type can hold survives exactly; the rest is near, and zeros stay zeros."""
    values = np.random.default_rng(5).standard_normal((9, block.elements)).astype(np.float32)
    values[0] = 0
    once = block.decode(block.encode(values))
    assert once.shape == values.shape
    assert not once[0].any()
    assert np.abs(once - values).max() <= {"Q4_0": 0.3, "Q8_0": 0.02}.get(block.name, 0.02)
    assert np.allclose(block.decode(block.encode(once)), once, rtol=1e-3)


def test_bf16_rounds_to_the_nearest_and_ties_to_even():
    """As processors do it."""
    raw = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    stored = blocks.BF16.encode(raw[:, None]).reshape(-1).view("<u2").tolist()
    assert stored == [0x3F80, 0x3F82, 0x3F81]


def test_q6_k_is_decoded_as_its_layout_says():
    """Written bit by bit from the layout: low nibbles, high pairs, 16 scales and one over all."""
    random = np.random.default_rng(2)
    codes = random.integers(0, 64, 256)
    fine = random.integers(-128, 128, 16)
    raw = np.zeros(210, np.uint8)
    for n, code in enumerate(codes):
        half, rest = divmod(n, 128)
        quarter, lane = divmod(rest, 32)
        raw[64 * half + 32 * (quarter % 2) + lane] |= (code & 15) << (4 * (quarter // 2))
        raw[128 + 32 * half + lane] |= (code >> 4) << (2 * quarter)
    raw[192:208] = fine.astype(np.int8).view(np.uint8)
    raw[208:] = np.array([0.5], np.float16).view(np.uint8)
    wanted = 0.5 * fine.repeat(16) * (codes - 32)
    assert np.array_equal(blocks.Q6_K.decode(raw[None])[0], wanted)


def test_q4_1_is_decoded_as_its_layout_says():
    """Scale, minimum, then low halves and high halves."""
    raw = np.zeros(20, np.uint8)
    raw[:4] = np.array([0.5, -1.0], np.float16).view(np.uint8)
    raw[4:] = np.arange(16) | (15 - np.arange(16)) << 4
    wanted = [n * 0.5 - 1 for n in (*range(16), *range(15, -1, -1))]
    assert blocks.Q4_1.decode(raw[None])[0].tolist() == wanted


def test_names_and_orders_are_inverse():
    """Every name goes there and back, and so do the rows of a head."""
    for name in ("blk.7.attn_q.bias", "blk.0.ffn_gate.weight", "token_embd.weight"):
        assert to_gguf(from_gguf(name)) == name
    assert from_gguf("blk.0.ssm_a.weight") is None
    assert to_gguf("model.layers.0.mlp.experts.gate.weight") is None
    rows = np.arange(24).reshape(12, 2)
    assert to_pairs(rows, 2)[:, 0].tolist() == [0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22]
    assert np.array_equal(to_halves(to_pairs(rows, 2), 2), rows)


def test_llama_3s_positions_are_recognised():
    """The factors of a known rule give the rule back; others are refused."""
    rule = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = llama3_factors(64, 500000.0, rule)
    assert factors.min() == 1
    assert factors.max() == 32
    assert llama3_rule(factors, 64, 500000.0) == rule
    with pytest.raises(ModelFileRefused, match="rope_freqs"):
        llama3_rule(factors * 1.1, 64, 500000.0)


def test_llama_3_goes_there_and_back(folder, tmp_path):
    """The rule of stretched positions becomes a tensor and a rule again."""
    rule = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": rule}))
    assert dense_config(exported(folder, tmp_path, "q8_0"))["rope_parameters"] == rule


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "dynamic"),
        ({"sliding_window": 16}, "16 tokens back"),
        ({"mlp_bias": True}, "biases"),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_not_written(folder, tmp_path, change, said):
    """No file rather than one that answers otherwise."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFileRefused, match=said):
        exported(folder, tmp_path, "q8_0")
    assert not list(tmp_path.glob("*.gguf*"))


def test_an_unknown_way_to_cut_words_is_not_written(folder, tmp_path):
    """A tokenizer that llama.cpp would imitate wrongly is refused."""
    path = folder / "tokenizer.json"
    odd = {"type": "Whitespace"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "pre_tokenizer": odd}))
    with pytest.raises(ModelFileRefused, match="cuts text into words"):
        exported(folder, tmp_path, "q8_0")


def test_a_file_that_is_there_stays(folder, tmp_path):
    """Nothing is overwritten."""
    (tmp_path / "q8_0.gguf").write_text("precious")
    with pytest.raises(ConfigurationRefused, match="exists"):
        exported(folder, tmp_path, "q8_0")
    assert (tmp_path / "q8_0.gguf").read_text() == "precious"


def test_a_sentencepiece_model_goes_there_and_back(shared_data, tmp_path):
    """stories260K's pieces, scores and bytes give the same ids as SentencePiece itself."""
    path = shared_data / "models/stories260K/stories260K.bin"
    if not path.is_file():
        pytest.skip("no stories260K")
    manifest = open_model(str(path))
    export_gguf(manifest, "q8_0", tmp_path / "s.gguf")
    found = open_model(str(tmp_path / "s.gguf"))
    text = (shared_data / "text/tinystories_sample.txt").read_text("utf-8")
    text = " ".join(text.split())  # llama.cpp's tokenizer has no rule for double blanks
    ids = open_codec(manifest).encode(text)
    assert len(ids) > 500
    assert open_codec(found).encode(text) == ids
    assert found.eos_token_ids == manifest.eos_token_ids
