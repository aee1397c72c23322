"""Adapters batched beside one base give what each would give merged into the weights."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from starai.core.errors import (  # noqa: E402
    ConfigurationRefused,
    InvalidRequest,
    ModelFileRefused,
    Overloaded,
)
from starai.engines.base import EngineSpec  # noqa: E402
from starai.engines.registry import open_engine  # noqa: E402
from starai.engines.text.adapter_files import AdapterFile  # noqa: E402
from starai.engines.text.adapters import Adapters  # noqa: E402
from starai.engines.text.attention import NAME, Pass, Span  # noqa: E402
from starai.engines.text.forward import forward  # noqa: E402
from starai.engines.text.loading import load_model  # noqa: E402
from starai.engines.text.model import TextModel  # noqa: E402
from starai.engines.text.options import TextOptions  # noqa: E402
from starai.engines.text.pool import KeyValuePool  # noqa: E402
from starai.models.catalog import open_model  # noqa: E402
from starai.protocol import tokens  # noqa: E402
from starai.protocol.generation import Generation, Sampling  # noqa: E402

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
PROMPTS = [[5, 9, 200, 17], list(range(40, 63)), [7]]
#: By name: rank, alpha, layers' kinds, further config.
MADE = {
    "all": (4, 8, ATTENTION + MLP, {}),
    "odd": (3, 5, ["q_proj", "v_proj", "down_proj"], {"use_rslora": True}),
}


def write_adapter(folder, base, rank, alpha, kinds, more, seed=0, only=lambda name: True):
    """An adapter for the named kinds of layers of the weights in ``base``, as PEFT writes it."""
    chance = np.random.default_rng(seed)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.rpartition(".")[2] in kinds and only(module):
            outputs, inputs = weight.shape if more.get("fan_in_fan_out") is None else weight.T.shape
            key = f"base_model.model.{module}.lora_"
            tensors[key + "A.weight"] = chance.normal(size=(rank, inputs)).astype(np.float32)
            tensors[key + "B.weight"] = chance.normal(size=(outputs, rank)).astype(np.float32) / 9
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": kinds}
    config |= {"bias": "none", "lora_dropout": 0.1, "use_dora": False, "modules_to_save": None}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**config, **more}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merge(base, adapter, folder):
    """A plain model folder whose weights are W + scale * B A."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / (
        math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    )
    for name, down in tensors.items():
        if name.endswith("lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            change = scale * tensors[name.replace("lora_A", "lora_B")] @ down
            turned = change.T if config.get("fan_in_fan_out") else change
            weights[module + ".weight"] += np.ascontiguousarray(turned)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapters(folder_of, tmp_path_factory):
    """A folder with two adapters of the tiny Llama."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, made) in enumerate(MADE.items()):
        write_adapter(folder / name, folder_of("llama"), *made, seed=seed)
    return folder


@pytest.fixture(scope="module")
def engine(folder_of, adapters):
    return open_with(folder_of("llama"), adapters)


@pytest.fixture(scope="module")
def merged(folder_of, adapters, tmp_path_factory):
    """Answers of the plain model, and of models with one adapter merged, by adapter and prompt."""
    folder = tmp_path_factory.mktemp("merged")
    folders = {n: merge(folder_of("llama"), adapters / n, folder / n) for n in MADE}
    engines = {n: open_with(f) for n, f in {"": folder_of("llama"), **folders}.items()}
    return {
        (name, n): answers(one, {b"k": generation(prompt)})[b"k"]
        for name, one in engines.items()
        for n, prompt in enumerate(PROMPTS)
    }


def open_with(folder, adapters=None, **options):
    if adapters is not None:
        options["adapters"] = str(adapters)
    return open_engine(EngineSpec("text", str(folder), slots=9, threads=1, options=options))


def generation(prompt, adapter="", max_tokens=16, **changes):
    return Generation(
        prompt=tokens.pack(list(prompt)),
        max_tokens=max_tokens,
        sampling=Sampling(b"k" * 32, temperature=0.0),
        stop_token_ids=(),
        salt=b"s" * 16,
        adapter=adapter,
        **changes,
    )


def answers(engine, asked):
    for key, wanted in asked.items():
        engine.admit(key, wanted)
    return drain(engine, {key: [] for key in asked})


def drain(engine, ids):
    while engine.has_work:
        for news in engine.step():
            assert not news.error
            ids.setdefault(news.key, []).extend(news.ids)
    return ids


def test_adapters_in_one_batch_equal_merged_weights(engine, merged):
    """Two adapters and the model itself, three prompts each, all at once: each as if merged."""
    asked = {
        f"{name}/{n}".encode(): generation(prompt, name)
        for n, prompt in enumerate(PROMPTS)
        for name in ("", *MADE)
    }
    found = answers(engine, asked)
    expected = {f"{name}/{n}".encode(): ids for (name, n), ids in merged.items()}
    assert found == expected
    assert len({tuple(found[f"{name}/1".encode()]) for name in ("", *MADE)}) == 3


def test_prefixes_are_not_shared_across_adapters(engine, merged):
    """Keys and values of one adapter are not taken for another's, at the same prompt."""
    engine.check_integrity()
    for name in ("all", "", "odd", "all"):
        assert answers(engine, {b"k": generation(PROMPTS[1], name)})[b"k"] == merged[name, 1]


def test_no_tenant_can_name_the_memory_of_an_adapter(engine, merged):
    """A salt made of an adapter's digest, or of a longer tenant's, shares with nobody."""
    digest = engine._adapters.find("all").digest
    for salt in (hashlib.sha256(digest).digest(), digest):
        asked = {b"k": generation(PROMPTS[1], cache_salt=salt)}
        assert answers(engine, asked)[b"k"] == merged["", 1]
        assert answers(engine, {b"k": generation(PROMPTS[1], "all")})[b"k"] == merged["all", 1]


def test_a_fork_may_have_another_adapter(engine, merged):
    """What goes on with another adapter is computed anew, not from the parent's memory."""
    engine.admit(b"parent", generation(PROMPTS[1], "all"))
    engine.step()
    engine.fork(b"parent", b"child", generation(PROMPTS[1], "odd"))
    found = drain(engine, {})
    assert found[b"child"] == merged["odd", 1]


def test_a_prompt_in_pieces_and_drafts_keep_their_rows(engine, merged, steady, monkeypatch):
    """Pieces of a prompt beside decodes of other adapters belong to the right one."""
    asked = {name.encode(): generation(PROMPTS[1], name) for name in ("all", "", "odd")}
    for key, wanted in asked.items():
        engine.admit(key, wanted)
    ids = {key: [] for key in asked}
    monkeypatch.setattr(engine, "_pace", steady(5))
    while engine.has_work:
        for news in engine.step():
            ids[news.key] += news.ids
    assert ids == {name.encode(): merged[name, 1] for name in ("all", "", "odd")}


@pytest.mark.parametrize(
    ("family", "kinds", "more"),
    [
        ("gpt2", ["c_attn", "c_proj"], {"fan_in_fan_out": True}),
        ("gemma3", ATTENTION + MLP, {}),
        ("phi3", ["qkv_proj", "gate_up_proj", "down_proj"], {}),
    ],
)
def test_other_architectures_equal_merged_weights(folder_of, tmp_path, family, kinds, more):
    """Fused layers of the model's own, layers the other way round, and windows are all the same."""
    base = folder_of(family)
    write_adapter(tmp_path / "set" / "one", base, 4, 6, kinds, more)
    plain = open_with(merge(base, tmp_path / "set" / "one", tmp_path / "merged"))
    expected = answers(plain, {b"k": generation(PROMPTS[1])})
    one = open_with(base, tmp_path / "set")
    asked = {b"k": generation(PROMPTS[1], "one"), b"other": generation(PROMPTS[0])}
    assert answers(one, asked)[b"k"] == expected[b"k"]


def some_pass(adapters):
    spans = [Span((0,), 0, 5), Span((1,), 0, 3), Span((2,), 0, 4)]
    return Pass(KeyValuePool(3), spans, adapters=adapters), list(range(20, 32))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_each_layer_of_any_kind_gets_exactly_its_change(folder_of, adapters, bits):
    """``y = base(x) + scale * B A x`` for the rows of the adapter, the same base for all others."""
    model = TextModel(load_model(open_model(str(folder_of("llama"))), NAME), TextOptions(bits=bits))
    kept = Adapters(model.module, str(adapters), 1 << 20)
    one = kept.find("odd")
    seen = {}

    def see(path):
        def hook(module, args, output):
            seen[path] = (args[0][0].clone(), output[0].clone())

        return hook

    for path in one.factors:
        model.module.get_submodule(path).register_forward_hook(see(path))
    with torch.inference_mode():
        model.run(*some_pass([None, one, None]), [11])
    rows = slice(5, 8)
    assert len(seen) == 9
    for path, (x, y) in seen.items():
        module = model.module.get_submodule(path)
        part = module.group.part(module.index) if hasattr(module, "group") else module
        base = part.forward(x)
        down, up = one.factors[path]
        expected = base.clone()
        expected[rows] += x[rows] @ down.T @ up.T
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert float((expected - base)[rows].abs().max()) > 0.01
    assert model.refitted.layers if bits == 16 else model.refitted.layers.keys() - {"bf16"}


def test_rows_without_an_adapter_keep_their_bits(folder_of, adapters):
    """Logits beside an adapter are to the last bit those of a batch without any."""
    model = TextModel(
        load_model(open_model(str(folder_of("llama"))), NAME), TextOptions(native=False)
    ).module
    one = Adapters(model, str(adapters), 1 << 20).find("all")
    with torch.inference_mode():
        plain = forward(model, *some_pass(()), range(12))
        mixed = forward(model, *some_pass([None, one, None]), range(12))
    rows = [*range(5), *range(8, 12)]
    assert torch.equal(plain[rows], mixed[rows])
    assert not torch.allclose(plain[5:8], mixed[5:8], atol=0.1)


def test_ranks_and_alphas_of_their_own(folder_of, tmp_path):
    """``rank_pattern`` and ``alpha_pattern`` name layers by the ends of their names."""
    base = folder_of("llama")
    folder = write_adapter(tmp_path / "one", base, 4, 8, ["q_proj", "v_proj"], {})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"r": 2, "rank_pattern": {"q_proj": 4, "layers.1.self_attn.v_proj": 4}}
    config["alpha_pattern"] = {"^model.layers.0.self_attn.v_proj": 3, "0.self_attn.q_proj": 2}
    tensors = load_file(folder / "adapter_model.safetensors")
    for n in (0, 2):
        stem = f"base_model.model.model.layers.{n}.self_attn.v_proj.lora_"
        tensors[stem + "A.weight"] = tensors[stem + "A.weight"][:2]
        tensors[stem + "B.weight"] = np.ascontiguousarray(tensors[stem + "B.weight"][:, :2])
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    kept = Adapters(load_model(open_model(str(base)), NAME), str(tmp_path), 1 << 20)
    factors = kept.find("one").factors
    scales = {"0.self_attn.q_proj": 2 / 4, "0.self_attn.v_proj": 3 / 2, "2.self_attn.v_proj": 4}
    for end, scale in scales.items():
        own = tensors[f"base_model.model.model.layers.{end}.lora_B.weight"]
        up = factors[f"model.layers.{end}"][1].numpy()
        np.testing.assert_allclose(up, scale * own, rtol=1e-6)


def test_unknown_adapters_are_refused_with_near_names(folder_of, engine):
    """The message names what there is; a path is no name."""
    with pytest.raises(InvalidRequest, match="there is odd"):
        engine.admit(b"a", generation([1], "odt"))
    with pytest.raises(InvalidRequest, match="all, odd"):
        engine.admit(b"a", generation([1], "nothing"))
    for name in ("../all", "all/", ".", "all/../all"):
        with pytest.raises(InvalidRequest, match="there is no adapter"):
            engine.admit(b"a", generation([1], name))
    with pytest.raises(InvalidRequest, match="option 'adapters'"):
        open_with(folder_of("llama")).admit(b"a", generation([1], "all"))
    assert not engine.has_work


def test_a_folder_that_is_none_is_refused(folder_of, tmp_path):
    """A wrong folder shows when the engine opens."""
    with pytest.raises(ConfigurationRefused, match="not a folder"):
        open_with(folder_of("llama"), tmp_path / "none")


def test_the_least_recently_used_goes_and_those_in_use_stay(folder_of, adapters, engine):
    """Loaded adapters stay below their bound; what is running is never let go."""
    module = load_model(open_model(str(folder_of("llama"))), NAME)
    roomy = Adapters(module, str(adapters), 1 << 20)
    sizes = {name: roomy.find(name).num_bytes for name in MADE}
    kept = Adapters(module, str(adapters), sum(sizes.values()) - 1)
    first = kept.find("all")
    with pytest.raises(Overloaded, match="adapters_gib"):
        kept.find("odd", [None, first])
    assert kept.find("all") is first
    kept.find("odd")
    assert kept.loaded_bytes == sizes["odd"]
    again = kept.find("all", [None])
    assert again is not first
    assert again.digest == first.digest
    with pytest.raises(ModelFileRefused, match="raise adapters_gib"):
        Adapters(module, str(adapters), 100).find("all")


BAD_CONFIGS = [
    ({"peft_type": "IA3"}, "IA3"),
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "biases"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
    ({"r": 8}, "rank is 8"),
    ({"r": 0}, "make sense"),
    ({"r": True}, "make sense"),
    ({"lora_alpha": "16"}, "make sense"),
    ({"lora_alpha": 10**400}, "make sense"),
    ({"r": 10**400}, "make sense"),
    ({"alpha_pattern": {"q_proj": 1e308}}, "make sense"),
    ({"peft_type": "\x1b[2J"}, r"'\\x1b"),
    ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern"),
    ({"rank_pattern": [4]}, "rank_pattern"),
    ({"target_modules": ["q_proj"]}, "target_modules"),
    ({"target_modules": [*ATTENTION, *MLP, "lm_head"]}, "lm_head"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_CONFIGS)
def test_configs_that_mean_something_else_are_refused(
    folder_of, adapters, tmp_path, changes, reason
):
    """What would change the result, or is not known, is named and not ignored."""
    folder = shutil.copytree(adapters / "all", tmp_path / "one")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelFileRefused, match=reason):
        base_adapters(folder_of, tmp_path).find("one")


_BASES = {}


def base_adapters(folder_of, folder):
    if "llama" not in _BASES:
        _BASES["llama"] = load_model(open_model(str(folder_of("llama"))), NAME)
    return Adapters(_BASES["llama"], str(folder), 1 << 20)


def test_a_regular_expression_of_targets_is_not_run(folder_of, adapters, tmp_path):
    """With ``target_modules`` as a pattern the tensors alone say what is changed."""
    folder = shutil.copytree(adapters / "all", tmp_path / "one")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": "(a+)+$"}))
    assert len(base_adapters(folder_of, tmp_path).find("one").factors) == 21


def test_many_targets_take_no_time(tmp_path):
    """A thousand targets and layers are compared by their names' ends, not each with each."""
    names = [f"model.layers.{n}.q_proj" for n in range(4000)]
    base = {f"{name}.weight": np.zeros((1, 1), np.float32) for name in names}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    folder = write_adapter(tmp_path / "many", tmp_path / "base", 1, 1, ["q_proj"], {})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = [name.removeprefix("model.") for name in names]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    begun = time.process_time()
    assert AdapterFile(folder).modules == tuple(sorted(names))
    assert time.process_time() - begun < 3


STEM = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def _rename(tensors, to):
    tensors[to + "A.weight"] = tensors.pop(STEM + "A.weight")
    tensors[to + "B.weight"] = tensors.pop(STEM + "B.weight")


BAD_TENSORS = [
    (lambda t: t.pop(STEM + "A.weight"), "one of its two factors"),
    (lambda t: t.update({STEM + "A.weight": np.full((4, 32), np.nan, np.float32)}), "no number"),
    (lambda t: t.update({STEM + "A.weight": np.zeros((4, 31), np.float32)}), "another one"),
    (lambda t: t.update({STEM + "A.weight": np.zeros((32,), np.float32)}), "factors of"),
    (lambda t: t.update({STEM + "A.weight": np.zeros((4, 32), np.int32)}), "no plain weight"),
    (lambda t: t.update({"base_model.model.lm_head.weight": np.zeros((4, 4))}), "no factor"),
    (lambda t: _rename(t, STEM.replace("layers.0", "layers.9")), "no 'model.layers.9"),
    (lambda t: _rename(t, STEM.replace("q_proj", "q_norm")), "target_modules|no 'model"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD_TENSORS)
def test_weights_that_do_not_fit_are_refused(folder_of, adapters, tmp_path, spoil, reason):
    """Factors that are missing, misshapen, no numbers or of no layer are named."""
    folder = shutil.copytree(adapters / "all", tmp_path / "one")
    tensors = load_file(folder / "adapter_model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelFileRefused, match=reason):
        base_adapters(folder_of, tmp_path).find("one")


@pytest.mark.parametrize("fault", ["truncated", "pickled", "config"])
def test_damaged_files_are_refused(folder_of, adapters, tmp_path, fault):
    """Truncated weights, weights as pickle and a config that is no JSON are errors that say so."""
    folder = shutil.copytree(adapters / "all", tmp_path / "one")
    weights = folder / "adapter_model.safetensors"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif fault == "pickled":
        weights.rename(folder / "adapter_model.bin")
    else:
        (folder / "adapter_config.json").write_text("{")
    reason = {"truncated": "has", "pickled": "never read", "config": "JSON"}[fault]
    with pytest.raises(ModelFileRefused, match=reason):
        base_adapters(folder_of, tmp_path).find("one")


@pytest.mark.parametrize("kinds", [["lm_head"], ["embed_tokens"]])
def test_what_is_no_layer_of_all_tokens_is_refused(folder_of, tmp_path, kinds):
    """The output layer sees only some tokens, an embedding is no linear layer."""
    write_adapter(tmp_path / "one", folder_of("llama"), 4, 8, kinds, {})
    with pytest.raises(ModelFileRefused, match=r"output layer|no linear layer"):
        base_adapters(folder_of, tmp_path).find("one")


def test_a_damaged_adapter_disturbs_nobody(engine, adapters, merged):
    """An adapter that cannot be loaded is refused while the others are served."""
    folder = shutil.copytree(adapters / "all", adapters / "broken")
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    try:
        engine.admit(b"good", generation(PROMPTS[0], "all"))
        engine.step()
        with pytest.raises(ModelFileRefused):
            engine.admit(b"bad", generation(PROMPTS[0], "broken"))
    finally:
        shutil.rmtree(folder)
    rest = drain(engine, {b"good": []})[b"good"]
    assert rest == merged["all", 0][-len(rest) :]
    engine.check_integrity()
