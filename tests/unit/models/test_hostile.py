"""Model files that lie cost a refusal: no crash, no memory beyond a few times their size."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest, ModelFileRefused, Unavailable
from starai.models.catalog import open_model
from starai.models.checkpoints.files import write_safetensors
from starai.models.checkpoints.opening import open_checkpoint
from starai.models.codec import open_codec
from starai.models.folder import check_tokenizer
from starai.models.gguf.blocks import F32
from starai.models.gguf.header import read_header
from starai.models.gguf.spelling import spelled
from starai.models.gguf.tokens import ending_ids, merges_of
from starai.models.gguf.writing import write_gguf
from starai.models.hub.listing import parse_listing, parse_names
from starai.models.manifest import ModelManifest
from starai.models.sentencepieces import SentencePieceCodec
from starai.models.template import ChatTemplate

#: What a refusal may take besides the program itself; a set of 2^31 numbers takes 100 GB.
MEMORY_BYTES = 6 << 30

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "max_position_embeddings": 16,
    "eos_token_id": 1,
}
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
SHAPES = {"model.embed_tokens.weight": (8, 4), "model.layers.0.mlp.up_proj.weight": (4, 4)}


def folder_of(path, *, shapes=None, tokenizer=None, **config):
    """A model folder of almost nothing."""
    path.mkdir(exist_ok=True)
    shapes = SHAPES if shapes is None else shapes
    write_safetensors(
        path / "model.safetensors",
        {name: ("F32", shape) for name, shape in shapes.items()},
        (np.zeros(shape, np.float32) for shape in shapes.values()),
    )
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer or TOKENIZER))
    return path


def refused_in_little_memory(path):
    """What a process that may not take much memory says when it opens the model."""
    code = (
        "import sys\n"
        "from starai.core.errors import ModelFileRefused\n"
        "from starai.models.catalog import open_model\n"
        "try:\n"
        "    print('opened', open_model(sys.argv[1]).name)\n"
        "except ModelFileRefused as refused:\n"
        "    print('refused', refused.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("refused")
    return done.stdout


def test_the_small_folder_is_a_model(tmp_path):
    """What the refusals below start from is sound."""
    assert open_model(str(folder_of(tmp_path / "m"))).vocab_size == 8


@pytest.mark.parametrize("shapes", [SHAPES, {"model.embed_tokens.weight": (8, 4)}])
def test_a_number_of_layers_is_no_memory(tmp_path, shapes):
    """A folder that declares two thousand million layers is refused before they are counted."""
    folder = folder_of(tmp_path / "m", shapes=shapes, num_hidden_layers=(1 << 31) - 1)
    assert "2147483647 layers" in refused_in_little_memory(folder)


def test_a_vocabulary_without_an_end_is_refused(tmp_path):
    """Where no tensor is known to tell its size, a vocabulary still has a limit."""
    shapes = {"embedding": (8, 4), "model.layers.0.mlp.up_proj.weight": (4, 4)}
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": (1 << 31) - 2}, "merges": []}}
    folder = folder_of(tmp_path / "m", shapes=shapes, tokenizer=tokenizer, vocab_size=(1 << 31) - 1)
    with pytest.raises(ModelFileRefused, match="vocabulary of 2147483647"):
        open_model(str(folder))


@pytest.mark.parametrize("ends", [[[1]], {"a": 1}, [None], ["1"], [8], "1"])
def test_end_tokens_of_any_form_are_read_or_refused(tmp_path, ends):
    """Lists in lists and objects are no ids."""
    with pytest.raises(ModelFileRefused, match="eos_token_id"):
        open_model(str(folder_of(tmp_path / "m", eos_token_id=ends)))


@pytest.mark.parametrize("number", ["9" * 5000, "²", "٣"])
def test_a_number_in_a_tensors_name_is_only_a_name(tmp_path, number):
    """Digits that Python would not read as a number are no layer, and no crash."""
    shapes = {"model.embed_tokens.weight": (8, 4), f"model.layers.{number}.a.weight": (4, 4)}
    folder = folder_of(tmp_path / "m", shapes=shapes)
    try:
        open_model(str(folder))
    except ModelFileRefused as refused:
        assert "lack layer 0" in refused.message  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("vocab", [{"a": "b"}, {"a": [1]}, {"a": None}, {}, 5])
def test_a_vocabulary_of_anything_but_numbers_is_refused(vocab):
    """Ids that cannot be compared with a size are no ids."""
    with pytest.raises(ModelFileRefused, match=r"tokenizer\.json"):
        check_tokenizer({"model": {"vocab": vocab}}, 8)


@pytest.mark.parametrize("sparsity", ["dense", [1], 7])
def test_settings_of_the_wrong_kind_are_refused(tmp_path, sparsity):
    """A quantisation's settings may be of any JSON type."""
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "sparsity_config": sparsity,
    }
    with pytest.raises(ModelFileRefused, match="compressed-tensors"):
        open_model(str(folder_of(tmp_path / "m", quantization_config=settings)))


GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 2,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.eos_token_id": 2,
}
GGUF_SHAPES = {"token_embd.weight": (8, 32), "blk.0.attn_q.weight": (32, 32)}


def gguf_of(path, shapes=None, **settings):
    """A GGUF file of almost nothing."""
    shapes = GGUF_SHAPES if shapes is None else shapes
    parts = (np.ones(int(np.prod(s)), np.float32).view(np.uint8) for s in shapes.values())
    write_gguf(path, {**GGUF, **settings}, {n: (s, F32) for n, s in shapes.items()}, parts)
    return path


def test_a_gguf_number_of_layers_is_no_memory(tmp_path):
    """A GGUF file that declares two thousand million layers is refused just as cheaply."""
    path = gguf_of(tmp_path / "m.gguf", **{"llama.block_count": (1 << 31) - 1})
    assert "2147483647 layers" in refused_in_little_memory(path)


def test_lists_of_a_gguf_file_are_counted_together(tmp_path):
    """Sixty lists, each as long as one may be, would take 30 times the file's size."""
    item = struct.pack("<IIQ", 9, 1, 1 << 20) + bytes(1 << 20)
    entries = b"".join(struct.pack("<Q", 2) + b"%02d" % n + item for n in range(10))
    path = tmp_path / "m.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 10) + entries)
    with pytest.raises(ModelFileRefused, match="in all lists"):
        read_header(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"llama.block_count": "\udcff\x1b[2J"},
        {"llama.rope.freq_base": "\udcff"},
        {"general.alignment": "\udcff"},
        {"general.architecture": "\udcff"},
        {"llama.rope.scaling.type": "\udcff"},
    ],
)
def test_a_refusal_can_be_printed(tmp_path, settings):
    """Bytes that are no text, and codes that move a cursor, do not reach the message."""
    path = gguf_of(tmp_path / "m.gguf", **settings)
    with pytest.raises(ModelFileRefused) as refused:
        open_model(str(path))
    assert refused.value.message.encode()
    assert refused.value.message.isprintable()


def test_a_template_that_is_no_text_is_refused(tmp_path):
    """A chat template of broken UTF-8 is a refusal, like a token of it."""
    path = gguf_of(tmp_path / "m.gguf", **{"tokenizer.chat_template": "\udcff"})
    with pytest.raises(ModelFileRefused, match="no text"):
        open_codec(open_model(str(path)))


def test_end_tokens_that_are_lists_are_none(tmp_path):
    """A list where llama.cpp keeps an id ends nothing."""
    assert ending_ids({"tokenizer.ggml.eos_token_id": [2], "tokenizer.ggml.eot_token_id": 3}) == [3]
    path = gguf_of(tmp_path / "m.gguf", **{"tokenizer.ggml.eos_token_id": [2]})
    with pytest.raises(ModelFileRefused, match="end token"):
        open_model(str(path))


@pytest.mark.parametrize("number", ["9" * 5000, "٣", "00"])
def test_a_gguf_layer_has_a_plain_number(tmp_path, number):
    """A name that means no layer, or a layer twice, belongs to no architecture."""
    path = gguf_of(tmp_path / "m.gguf", {**GGUF_SHAPES, f"blk.{number}.attn_q.weight": (32, 32)})
    with pytest.raises(ModelFileRefused, match="no architecture"):
        open_model(str(path))


def test_rope_factors_have_a_limit(tmp_path):
    """The one tensor that is read with the head is a small one."""
    path = gguf_of(tmp_path / "m.gguf", {**GGUF_SHAPES, "rope_freqs.weight": (1 << 15,)})
    with pytest.raises(ModelFileRefused, match="32768 numbers"):
        open_model(str(path))


def test_pieces_that_merge_in_endless_ways_are_refused(monkeypatch):
    """All strings of two letters have as many merges as letters; no vocabulary does."""
    monkeypatch.setattr("starai.models.gguf.tokens._MERGES_MAX", 1000)
    tokens = [f"{n:b}"[1:] for n in range(2, 512)]
    with pytest.raises(ModelFileRefused, match="ways"):
        merges_of(tokens, [0.0] * len(tokens), [1] * len(tokens))


@pytest.mark.parametrize(
    "odd",
    [
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "zz"}},
    ],
    ids=["frame", "unknown"],
)
def test_a_tokenizer_that_panics_is_refused(tmp_path, odd):
    """The library's own crash at a token that is not there does not end the program."""
    fuse = {"type": "Fuse"}
    plain = {"version": "1.0", "added_tokens": [], "decoder": fuse, **TOKENIZER}
    folder = folder_of(tmp_path / "m", tokenizer=plain)
    assert open_codec(open_model(str(folder))).encode("ab") == [0, 1]
    folder = folder_of(tmp_path / "m", tokenizer={**plain, **odd})
    with pytest.raises(ModelFileRefused, match=r"tokenizer\.json: not usable"):
        open_codec(open_model(str(folder)))


def test_pieces_that_are_no_text_are_refused(tmp_path, shared_data):
    """A SentencePiece model may hold any bytes; where text must be, that is a damaged file."""
    source = shared_data / "models" / "babyllama105" / "tok105.model"
    if not source.is_file():
        pytest.skip("no such tokenizer in the shared data")
    raw = source.read_bytes()
    path = tmp_path / "tok.model"
    path.write_bytes(raw[: (at := raw.index(b"\xe2\x96\x81"))] + b"\xff" + raw[at + 1 :])
    manifest = ModelManifest("m", bytes(32), "llama2c", "", 64, 105, (2,), 1, 1, "Llama")
    with pytest.raises(ModelFileRefused, match="no text"):
        SentencePieceCodec(manifest, path)
    with pytest.raises(ModelFileRefused, match="damaged"):
        spelled(manifest, {"tokenizer.model": path.read_bytes()})


@pytest.mark.parametrize("model", [{"type": "BPE", "vocab": {"a": 0}}, {"type": "BPE", "vocab": 7}])
def test_a_tokenizer_that_lacks_its_parts_is_not_exported(model):
    """What GGUF would hold of it cannot be told."""
    manifest = ModelManifest("m", bytes(32), "huggingface", "", 64, 8, (2,), 1, 1, "Llama")
    with pytest.raises(ModelFileRefused, match="damaged"):
        spelled(manifest, {"tokenizer.json": json.dumps({"model": model}).encode()})


def test_a_template_goes_wrong_without_harm():
    """Division by zero and endless recursion are a template's fault, and told as such."""
    messages = [{"role": "user", "content": "hi"}]
    for source in ("{{ messages|length // 0 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"):
        with pytest.raises(InvalidRequest, match="cannot render"):
            ChatTemplate(source, [], {}).render(messages)
    with pytest.raises(ModelFileRefused, match="does not compile"):
        ChatTemplate("{{ (10**5)**(10**3) }}", [], {})


def test_a_deep_answer_of_a_hub_is_nonsense():
    """Nesting that no reader follows is refused like any other nonsense."""
    deep = b'{"sha": "' + b"0" * 40 + b'", "other": ' + b"[" * 100_000
    with pytest.raises(Unavailable):
        parse_listing(deep)
    assert parse_names(deep) == ()


#: Numbers that readers of lengths and offsets trip over.
WORDS = [0, 1, 8, 9, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1]


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 20), st.sampled_from(WORDS), st.sampled_from([1, 4, 8])),
        min_size=1,
        max_size=3,
    )
)
def test_a_damaged_gguf_file_is_a_model_or_refused(tmp_path_factory, damages):
    """Whatever is written over its head, every tensor and the tokenizer are read, or refused."""
    folder = tmp_path_factory.getbasetemp()
    source = folder / "whole.gguf"
    if not source.exists():
        gguf_of(source, **{"tokenizer.chat_template": "{{ messages }}"})
    raw = bytearray(source.read_bytes())
    for at, word, size in damages:
        place = at % (len(raw) - 8)
        raw[place : place + size] = word.to_bytes(8, "little")[:size]
    path = folder / "damaged-words.gguf"
    path.write_bytes(raw)
    try:
        manifest = open_model(str(path))
        open_codec(manifest).encode("a b")
        checkpoint = open_checkpoint(manifest)
        for name, shape in checkpoint.shapes.items():
            assert checkpoint.floats(name).shape == shape
    except ModelFileRefused as refused:
        assert refused.message.encode()  # noqa: PT017 - either outcome is right


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
FIELDS = [*CONFIG, "bos_token_id", "text_config", "quantization_config"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
def test_a_damaged_config_is_a_model_or_refused(tmp_path_factory, changes):
    """Whatever a field of config.json holds, the folder is read or refused."""
    folder = folder_of(tmp_path_factory.getbasetemp() / "damaged-config", **changes)
    try:
        assert open_model(str(folder)).num_parameters == 48
    except ModelFileRefused as refused:
        assert refused.message.encode()  # noqa: PT017 - either outcome is right
