"""Models are found by reference, have one identity, and wrong files are refused with the reason."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest

from starai.core.errors import ModelFileRefused, ModelNotFound
from starai.models.catalog import EMBEDDED_FOLDER, open_model
from starai.models.codec import open_codec
from starai.models.manifest import merkle_root

STORIES = "models/stories260K/stories260K.bin"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_the_root_is_the_tree_hash_of_rfc_9162(tmp_path):
    """Three files: ((a, b), c), leaves with 0x00 and their names, nodes with 0x01."""
    files = {}
    for name, content in (("c", b"3"), ("a", b"1"), ("b/x", b"2")):
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(content)
        files[name] = path
    a, b, c = (
        sha256(b"\0" + len(name).to_bytes(4, "big") + name + sha256(content))
        for name, content in ((b"a", b"1"), (b"b/x", b"2"), (b"c", b"3"))
    )
    assert merkle_root(files) == sha256(b"\1" + sha256(b"\1" + a + b) + c)


def test_a_folder_becomes_a_manifest(folder):
    """Everything the network needs to know of a model is in its manifest."""
    manifest = open_model(str(folder))
    assert manifest.name == "tiny"
    assert manifest.kind == "huggingface"
    assert (manifest.vocab_size, manifest.context_length) == (264, 64)
    assert manifest.eos_token_ids == (259, 261)
    assert manifest.bos_token_id == 258
    assert manifest.num_parameters == 264 * 4 + 2 * 32
    assert manifest.architecture == "LlamaForCausalLM"
    assert len(manifest.root) == 32


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_the_root_sees_every_defining_file(folder, file):
    """One changed byte changes the root; a note beside the model does not."""
    before = open_model(str(folder)).root
    (folder / "README.md").write_text("a note")
    assert open_model(str(folder)).root == before
    raw = bytearray((folder / file).read_bytes())
    raw[-1:] = b" }" if file.endswith("json") else b"\x01"
    (folder / file).write_bytes(bytes(raw))
    assert open_model(str(folder)).root != before


def test_a_pulled_model_is_found_by_its_name(folder, tmp_path):
    """ORG/NAME means the folder in the store, and is the model's public name."""
    shutil.copytree(folder, tmp_path / "store" / "org" / "tiny")
    manifest = open_model("org/tiny", tmp_path / "store")
    assert manifest.name == "org/tiny"
    assert manifest.root == open_model(str(folder)).root
    for reference in ("org/other", "../tiny", "org/tiny/x", "nothing"):
        with pytest.raises(ModelNotFound):
            open_model(reference, tmp_path / "store")


def test_mock_needs_no_files():
    """The mock's manifest is a constant."""
    manifest = open_model("mock")
    assert (manifest.name, manifest.vocab_size, manifest.eos_token_ids) == ("mock", 257, (256,))
    assert manifest == open_model("mock")


@pytest.mark.skipif(not (EMBEDDED_FOLDER / "config.json").is_file(), reason="not yet trained")
def test_the_embedded_model_is_sound():
    """The model in the package opens under its public name."""
    assert open_model("embedded").name == "starai-tiny"
    assert open_model("starai-tiny") == open_model("embedded")


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config.json", {"vocab_size": None}, "vocab_size"),
        ("config.json", {"vocab_size": -3}, "vocab_size"),
        ("config.json", {"max_position_embeddings": "many"}, "max_position_embeddings"),
        ("config.json", {"architectures": []}, "architectures"),
        ("config.json", {"hidden_size": 5}, r"shape \[264, 4\].*\[264, 5\]"),
        ("config.json", {"vocab_size": 300}, "shape"),
        ("config.json", {"num_hidden_layers": 3}, "lack layer 2"),
        ("generation_config.json", {"eos_token_id": 264}, "eos_token_id"),
        ("tokenizer.json", {"model": {}}, "vocabulary"),
    ],
)
def test_files_that_contradict_each_other_are_refused(change, file, changes, reason):
    """The refusal names the value at fault."""
    folder = change(file, **changes)
    with pytest.raises(ModelFileRefused, match=reason):
        open_model(str(folder))


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(folder, change):
    """Ids past the vocabulary would index past the embedding."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    added[-1]["id"] = 264
    change("tokenizer.json", added_tokens=added)
    with pytest.raises(ModelFileRefused, match="reach 264"):
        open_model(str(folder))


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"]
)
def test_truncated_and_missing_files_are_refused(folder, file):
    """Each file by its name."""
    raw = (folder / file).read_bytes()
    (folder / file).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelFileRefused, match=file.split(".")[0]):
        open_model(str(folder))
    (folder / file).unlink()
    if file != "generation_config.json":
        with pytest.raises(ModelFileRefused, match=file.split(".")[0]):
            open_model(str(folder))


@pytest.mark.parametrize("home", ["../model.safetensors", "/etc/x.safetensors", "gone.safetensors"])
def test_an_index_stays_in_its_folder(folder, home):
    """A sharded model's index may only name files that are there."""
    index = {"weight_map": {"model.embed_tokens.weight": home}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileRefused, match="index"):
        open_model(str(folder))


def test_an_index_must_find_its_tensors(folder):
    """A tensor that its shard lacks is named."""
    index = {"weight_map": {"lost": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileRefused, match="'lost'"):
        open_model(str(folder))


def test_other_files_are_no_models(tmp_path):
    """A file that is neither is refused, and the message says what is accepted."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK")
    with pytest.raises(ModelFileRefused, match=r"gguf or llama2\.c"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "28 bytes, got 0"),
        (b"x" * 28, "not a llama2"),
        (struct.pack("<7i", 8, 16, 1, 2, 2, 10, 0), "not a llama2"),
        (struct.pack("<7i", 8, 16, 1, 2, 2, 10, 4), "has 3068 bytes, the file has 28"),
    ],
)
def test_wrong_llama2c_files_are_refused(tmp_path: Path, raw, reason):
    """Expected and found bytes are in the message."""
    path = tmp_path / "model.bin"
    path.write_bytes(raw)
    with pytest.raises(ModelFileRefused, match=reason):
        open_model(str(path))


def test_stories260k_opens_and_its_parts_do_not(shared_data, tmp_path):
    """The real file has 260,032 parameters; cut short, or without a fitting tokenizer, nothing."""
    source = shared_data / STORIES
    if not source.is_file():
        pytest.skip("no stories260K")
    manifest = open_model(str(source))
    assert (manifest.name, manifest.kind) == ("stories260K", "llama2c")
    assert (manifest.num_parameters, manifest.vocab_size) == (260_032, 512)
    model = tmp_path / "stories260K.bin"
    shutil.copyfile(source, model)
    with pytest.raises(ModelFileRefused, match="no tokenizer of 512 ids"):
        open_model(str(model))
    shutil.copyfile(source.parent / "tok512.bin", tmp_path / "tok512.bin")
    assert open_model(str(model)).num_parameters == manifest.num_parameters
    with model.open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(ModelFileRefused, match="1056540 bytes, the file has 1000000"):
        open_model(str(model))


def test_a_served_model_needs_no_weights_and_says_so_in_its_root(tmp_path):
    """Tokenizer and configuration are enough; name and files make the root, and it is its own."""
    folder = tmp_path / "big"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileRefused):
        open_model(str(folder))
    served, whole = open_model(f"served:{folder}"), open_model("embedded")
    assert (served.kind, served.name, served.num_parameters) == ("served", "big", 0)
    assert served.vocab_size == whole.vocab_size
    text = "Once upon a time"
    assert open_codec(served).encode(text) == open_codec(whole).encode(text)
    other = folder.rename(tmp_path / "other")
    assert len({served.root, whole.root, open_model(f"served:{other}").root}) == 3
    with pytest.raises(ModelFileRefused):
        open_model(f"served:{tmp_path / 'nowhere'}")
