"""The native engine computes what transformers computes, for many sequences at once."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from starai.core.errors import (  # noqa: E402
    ConfigurationRefused,
    ContextTooLong,
    ModelFileRefused,
    Overloaded,
)
from starai.engines.base import EngineSpec  # noqa: E402
from starai.engines.registry import open_engine  # noqa: E402
from starai.engines.text.attention import Pass, Span  # noqa: E402
from starai.protocol import tokens  # noqa: E402
from starai.protocol.generation import Finish, Generation, Grammar, Sampling  # noqa: E402

FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "mistral", "gpt_oss", "qwen3_moe", "gpt2"]
PROMPTS = [[5, 9, 200, 17], list(range(40, 63)), [7], [3, 1] * 15]


def generation(prompt, max_tokens=20, temperature=0.0, accepted=(), key=b"k" * 32, **changes):
    return Generation(
        prompt=tokens.pack(list(prompt)),
        max_tokens=max_tokens,
        sampling=Sampling(key, temperature=temperature),
        stop_token_ids=changes.pop("stop", ()),
        salt=b"s" * 16,
        accepted=tokens.pack(list(accepted)),
        **changes,
    )


def run(engine, asked):
    """Run generations by name to their ends; returns ids, finishes (or errors) and log-probs."""
    ids = {key: [] for key in asked}
    ends, logprobs = {}, {key: [] for key in asked}
    for key, wanted in asked.items():
        engine.admit(key, wanted)
    while engine.has_work:
        for news in engine.step():
            ids[news.key] += news.ids
            logprobs[news.key] += news.logprobs
            if news.finish or news.error:
                ends[news.key] = news.finish or news.error
    return ids, ends, logprobs


def answer(engine, wanted):
    return run(engine, {b"only": wanted})[0][b"only"]


@pytest.fixture(scope="module")
def llama(folder_of):
    return open_engine(EngineSpec("text", str(folder_of("llama")), threads=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_batch_equals_transformers_generate(folder_of, family):
    """Greedy tokens of four different prompts in one batch are those of generate, one by one."""
    folder = folder_of(family)
    engine = open_engine(EngineSpec("text", str(folder), threads=1))
    asked = {bytes([n]): generation(prompt) for n, prompt in enumerate(PROMPTS)}
    found = run(engine, asked)[0]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    for n, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            expected = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=20,
                do_sample=False,
            )[0, len(prompt) :]
        assert found[bytes([n])] == expected.tolist()


@pytest.mark.parametrize("family", ["bloom", "falcon", "mamba", "falcon_h1", "llama4"])
def test_architectures_that_would_be_wrong_are_refused(folder_of, family):
    """Models that bypass our attention, or keep state outside of it, never serve."""
    with pytest.raises(ModelFileRefused, match=r"."):
        open_engine(EngineSpec("text", str(folder_of(family))))


def test_log_probabilities_are_the_models(folder_of, llama):
    """Chosen and top log-probabilities equal those of a plain forward pass."""
    prompt = PROMPTS[1]
    ids, _, logprobs = run(llama, {b"a": generation(prompt, top_logprobs=3)})
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama")).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids[b"a"]])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)
    for row, token_id, found in zip(expected, ids[b"a"], logprobs[b"a"], strict=True):
        assert found.token_id == token_id
        assert found.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
        assert [i for i, _ in found.top] == row.topk(3).indices.tolist()


@pytest.mark.parametrize("kept", [0, 1, 7, 19, 39])
def test_a_resumed_answer_continues_identically(llama, kept):
    """At temperature 0.8, another engine that gets the first k tokens gives the same rest."""
    whole = answer(llama, generation(PROMPTS[0], 40, 0.8))
    assert len(whole) == 40
    rest = answer(llama, generation(PROMPTS[0], 40, 0.8, accepted=whole[:kept]))
    assert rest == whole[kept:]


def test_company_does_not_change_an_answer(llama):
    """At temperature 0.8 a sequence gets the same tokens alone and among seven others."""
    asked = {bytes([n]): generation(PROMPTS[n % 4], 30, 0.8, key=bytes([n]) * 32) for n in range(8)}
    together = run(llama, asked)[0]
    assert together == {key: answer(llama, wanted) for key, wanted in asked.items()}


def test_late_arrivals_and_departures_do_not_disturb(llama):
    """Sequences that come and are cancelled in between leave the first one as it was."""
    wanted = generation(PROMPTS[1], 40, 0.8)
    alone = answer(llama, wanted)
    llama.admit(b"first", wanted)
    ids = []
    for step in range(40):
        if step % 3 == 0:
            llama.admit(b"guest%d" % step, generation(PROMPTS[3], 60, 1.0))
        if step % 3 == 2:
            llama.cancel(b"guest%d" % (step - 2))
        ids += [id_ for news in llama.step() if news.key == b"first" for id_ in news.ids]
    llama.cancel(b"guest39")
    assert ids == alone
    assert not llama.has_work


def test_a_long_prompt_is_taken_in_pieces(folder_of, steady):
    """A prompt longer than a step's share gives the same answer, and others run beside it."""
    options = {"prefixes": 0}  # or the second time nothing of the prompt is left to compute
    engine = open_engine(EngineSpec("text", str(folder_of("gemma3")), threads=1, options=options))
    prompt = [(13 * n) % 290 for n in range(100)]
    whole = answer(engine, generation(prompt, 10))
    engine._pace = steady(7)  # a slow machine's
    engine.admit(b"long", generation(prompt, 10))
    engine.admit(b"short", generation([4], 5))
    ids, steps_before_first = [], 0
    while engine.has_work:
        news = engine.step()
        ids += [id_ for n in news if n.key == b"long" for id_ in n.ids]
        steps_before_first += not ids
    assert ids == whole
    assert steps_before_first >= 14


def test_a_pass_for_few_rows_gives_their_bits(folder_of):
    """What nobody reads is left out: the same logits, and the same keys and values in memory."""
    engine = open_engine(EngineSpec("text", str(folder_of("llama")), threads=1))
    pool, ids, found = engine.memory.pool, [(7 * n) % 290 for n in range(96)], []
    with torch.inference_mode():
        for wanted in (None, [63, 94, 95], range(96)):
            for x in (x for pair in pool.pairs for x in pair):
                x.zero_()
            run = Pass(pool, [Span(range(4), 0, 64), Span((5, 4), 0, 32)], wanted=wanted)
            output = engine.model.run(run, ids, [63, 94, 95])
            found.append((output.logits, [x.clone() for pair in pool.pairs for x in pair]))
        for logits, kept in found[1:]:
            assert np.array_equal(logits, found[0][0])
            assert all(map(torch.equal, kept, found[0][1]))
        run = Pass(pool, [Span(range(4), 0, 64)], wanted=())
        assert engine.model.run(run, ids[:64], []).logits.shape == (0, engine.info.vocab_size)


def test_only_steps_full_of_prompt_enlarge_a_steps_share(folder_of):
    """Short prompts and checked guesses say nothing of long ones: a long prompt stays in pieces."""
    engine = open_engine(EngineSpec("text", str(folder_of("llama")), threads=1))
    biased = Sampling(b"k" * 32, temperature=0.0, logit_bias={5: 100.0})
    for n in range(9):
        answer(engine, msgspec.structs.replace(generation([n] * 17, 60), sampling=biased))
    assert engine._pace.prompt_tokens(0, 0) <= 100
    for n in range(9):
        answer(engine, generation([n] * 120, 1))
    assert engine._pace.prompt_tokens(0, 0) > 100


def test_a_hurried_request_does_not_wait_for_its_twin(folder_of):
    """A twin of higher priority begins first; a twin that still waits can be forked."""
    engine = open_engine(EngineSpec("text", str(folder_of("llama")), slots=6, threads=1))
    prompt = list(range(40, 140))
    alone = answer(engine, generation(prompt, 4))
    engine = open_engine(EngineSpec("text", str(folder_of("llama")), slots=6, threads=1))
    engine.admit(b"idle", generation(prompt, 4, priority=-9))
    engine.admit(b"twin", generation(prompt, 4, priority=-9))
    engine.fork(b"twin", b"fork", generation(prompt, 4, priority=-9))
    engine.admit(b"other", generation(prompt[1:], 4))
    engine.admit(b"hurry", generation(prompt, 4, priority=9))
    order, ids = [], {}
    while engine.has_work:
        engine._share = 20
        for news in engine.step():
            order += [news.key] * (news.key not in order)
            ids.setdefault(news.key, []).extend(news.ids)
    assert order[0] == b"hurry"
    assert all(ids[key] == alone for key in (b"hurry", b"idle", b"twin", b"fork"))
    engine.check_integrity()


def test_the_stop_token_is_the_last_id(llama):
    """An answer ends with the token that stopped it."""
    whole = answer(llama, generation(PROMPTS[0], 20, 0.8))
    stop = whole[5]
    ids, ends, _ = run(llama, {b"a": generation(PROMPTS[0], 20, 0.8, stop=(stop,))})
    assert ids[b"a"] == whole[: whole.index(stop) + 1]
    assert ends[b"a"] is Finish.STOP


def test_the_context_bounds_an_answer(llama):
    """What does not fit is refused; what fits is cut at the context's end."""
    assert llama.info.context_length == 128
    with pytest.raises(ContextTooLong):
        llama.admit(b"a", generation([1] * 128))
    ids, ends, _ = run(llama, {b"a": generation([1] * 120, 1000)})
    assert (len(ids[b"a"]), ends[b"a"]) == (8, Finish.LENGTH)


def test_slots_are_bounded_and_come_back(folder_of):
    """A full engine is overloaded; ended and cancelled sequences free their slots."""
    engine = open_engine(EngineSpec("text", str(folder_of("llama")), slots=2, threads=1))
    for _ in range(3):
        engine.admit(b"a", generation([1], 3))
        engine.admit(b"b", generation([2], 1000))
        with pytest.raises(Overloaded):
            engine.admit(b"c", generation([3]))
        for _ in range(3):
            engine.step()
        engine.cancel(b"b")
        assert not engine.has_work


def test_a_poisoned_sequence_fails_alone(folder_of, tmp_path):
    """A token whose embedding is not a number ends its own sequence with an error, no other."""
    folder = shutil.copytree(folder_of("llama"), tmp_path / "poisoned")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][299] = np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    engine = open_engine(EngineSpec("text", str(folder), threads=1))
    alone = answer(engine, generation([5, 6], 10))
    asked = {
        b"bad": generation([5, 299], 10),
        b"good": generation([5, 6], 10),
        b"vector": generation([299], 0, embed=True),
    }
    ids, ends, _ = run(engine, asked)
    failed = dict.fromkeys([b"bad", b"vector"], "internal_error")
    assert ends == {**failed, b"good": Finish.LENGTH}
    assert ids == {b"bad": [], b"vector": [], b"good": alone}


def test_a_grammar_that_grows_too_complex_fails_alone():
    """Its mask allows a token behind which the parser gives up: no other answer is disturbed."""
    engine = open_engine(EngineSpec("text", "embedded", threads=1))
    alone = answer(engine, generation([5, 6], 10))
    kinds = [{"properties": {f"a{n}": {"type": "string", "maxLength": 999}}} for n in range(700)]
    schema = json.dumps({"anyOf": [{"type": "object", **kind} for kind in kinds]})
    bad = generation([5, 6], 10, grammar=Grammar("json_schema", schema))
    ids, ends, _ = run(engine, {b"bad": bad, b"good": generation([5, 6], 10)})
    assert ends == {b"bad": "invalid_request", b"good": Finish.LENGTH}
    assert ids[b"good"] == alone


@pytest.mark.parametrize("fault", [RuntimeError, ValueError, IndexError, MemoryError])
def test_a_failing_pass_is_repeated_one_by_one(folder_of, fault):
    """When a whole pass raises, only the sequence that makes it raise fails."""
    engine = open_engine(EngineSpec("text", str(folder_of("llama")), threads=1))
    expected = answer(engine, generation([5, 6], 10))

    def refuse(module, inputs):
        if (inputs[0] == 299).any():
            raise fault("a kernel failed")

    engine._model.module.get_input_embeddings().register_forward_pre_hook(refuse)
    asked = {b"bad": generation([5, 299], 10), b"good": generation([5, 6], 10)}
    ids, ends, _ = run(engine, asked)
    assert ends == {b"bad": "internal_error", b"good": Finish.LENGTH}
    assert ids[b"good"] == expected


def test_hidden_states_are_those_after_the_final_norm(folder_of, llama):
    """The hook sees each position of prompt and answer once, in order."""
    seen = []
    llama.on_hidden_states(lambda key, first, rows: seen.append((key, first, rows)))
    ids = answer(llama, generation(PROMPTS[0], 6))
    llama.on_hidden_states(None)
    answer(llama, generation(PROMPTS[0], 6))
    assert [first for _, first, _ in seen] == [0, 4, 5, 6, 7, 8]
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama")).eval()
    with torch.inference_mode():
        expected = model.model(torch.tensor([PROMPTS[0] + ids[:-1]])).last_hidden_state[0]
    found = np.concatenate([rows for _, _, rows in seen])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_weights_must_be_exactly_the_models(folder_of, tmp_path, fault):
    """A tensor too few or too many is refused by name."""
    folder = shutil.copytree(folder_of("llama"), tmp_path / fault)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del weights[name]
    else:
        name = "model.layers.1.mlp.side_proj.weight"
        weights[name] = np.zeros((2, 2), np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileRefused, match=name):
        open_engine(EngineSpec("text", str(folder)))


def test_quantised_weights_are_refused(folder_of, tmp_path):
    """Weights that this engine cannot run are named, not guessed at."""
    folder = shutil.copytree(folder_of("llama"), tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileRefused, match="bitsandbytes"):
        open_engine(EngineSpec("text", str(folder)))


def test_the_context_follows_the_kv_memory(folder_of):
    """A small KV memory shortens the context rather than failing later."""
    spec = EngineSpec("text", str(folder_of("llama")), threads=1, options={"kv_gib": 2e-5})
    # 3 layers, keys and values, 2 heads of 8 float32: 384 bytes a token, 6144 a block
    assert open_engine(spec).info.context_length == int(2e-5 * 2**30) // 6144 * 16 == 48


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"kv_gib": 1e-9}, "6144 bytes"),
        ({"kv_gb": 1}, "did you mean kv_gib"),
        ({"bits": 3}, "bits"),
        ({"swap_gib": -1}, "positive"),
        ({"attention": "sparse"}, "attention"),
    ],
)
def test_wrong_options_are_refused_with_a_hint(folder_of, options, hint):
    """An option that is unknown, or too small for a single block, says what to do."""
    with pytest.raises(ConfigurationRefused, match=hint):
        open_engine(EngineSpec("text", str(folder_of("llama")), options=options))
