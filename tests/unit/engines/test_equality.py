"""Whatever the engine does with memory and batches, the tokens are transformers' own.

Models of many architectures with random float32 weights; requests come 32 at a time, many with
equal prompts or equal beginnings, into a memory that holds about half of them.
"""

from __future__ import annotations

import msgspec
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM  # noqa: E402

from starai.engines.base import EngineSpec  # noqa: E402
from starai.engines.registry import open_engine  # noqa: E402
from starai.engines.sampler import TokenRace, sample  # noqa: E402
from starai.protocol import tokens  # noqa: E402
from starai.protocol.generation import Generation, Sampling  # noqa: E402

FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mistral",
    "phi3",
    "gemma2",
    "gemma3",
    "gpt_oss",
    "granite",
    "olmo2",
    "smollm3",
    "cohere2",
    "starcoder2",
    "gpt_neox",
    "stablelm",
    "deepseek_v3",
    "gpt2",
    "opt",
]
SYSTEM = [(31 * n + 7) % 290 for n in range(40)]
PROMPTS = [
    [5, 9, 200, 17],
    list(range(40, 63)),
    [7],
    [3, 1] * 15,
    [*SYSTEM, 11, 12],
    [*SYSTEM, 13],
    SYSTEM[:37] + [8] * 9,
    SYSTEM,
]
LENGTH = 14


def generation(prompt, temperature=0.0, key=b"k" * 32, length=LENGTH, **changes):
    return Generation(
        prompt=tokens.pack(list(prompt)),
        max_tokens=length,
        sampling=Sampling(key, temperature=temperature),
        stop_token_ids=(),
        salt=b"s" * 16,
        **changes,
    )


def plain_greedy(model, prompt):
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=LENGTH,
            do_sample=False,
        )
    return whole[0, len(prompt) :].tolist()


def plain_seeded(model, wanted):
    """The canonical sampler on transformers' logits, the whole text anew for each token."""
    ids = list(tokens.unpack(wanted.prompt))
    race = TokenRace(wanted.sampling, 300, [])
    answer = []
    for _ in range(LENGTH):
        with torch.inference_mode():
            logits = model(torch.tensor([ids + answer]), use_cache=False).logits[0, -1:]
        (token_id,) = sample(logits.float().numpy(), [race])
        race.note(token_id)
        answer.append(token_id)
    return answer


def requests():
    """32 requests: each prompt greedily twice and seeded twice (the seeded ones differ)."""
    asked = {}
    for n, prompt in enumerate(PROMPTS):
        for twin in range(2):
            asked[b"g%d-%d" % (n, twin)] = generation(prompt)
            asked[b"s%d-%d" % (n, twin)] = generation(prompt, 0.9, bytes([n + 9 * twin]) * 32)
    return asked


def run(engine, asked):
    """Most of the requests, and the others when the first prompts have been computed."""
    ids, later = {key: [] for key in asked}, list(asked)
    most = len(asked) * 5 // 8 or 1
    while engine.has_work or later:
        now, later = later[:most], later[most:]
        for key in now:
            engine.admit(key, asked[key])
        for news in engine.step():
            assert not news.error
            ids[news.key] += news.ids
    engine.check_integrity()
    return ids


@pytest.fixture(scope="module")
def expected_of(folder_of):
    """What transformers answers, for each family, made once."""
    made = {}

    def make(family):
        if family not in made:
            model = AutoModelForCausalLM.from_pretrained(
                folder_of(family), attn_implementation="eager"
            ).eval()
            model.generation_config.eos_token_id = None
            greedy = [plain_greedy(model, prompt) for prompt in PROMPTS]
            made[family] = {
                key: greedy[int(key[1:2])] if key[:1] == b"g" else plain_seeded(model, wanted)
                for key, wanted in requests().items()
            }
        return made[family]

    return make


def half_of_the_memory(folder, pace, **options):
    """An engine whose memory holds about half of what 32 requests need, all of which begin soon."""
    whole = open_engine(EngineSpec("text", str(folder), slots=1, threads=1))
    block = whole._memory.pool.bytes_per_block
    kv_gib = 48 * block / (1 << 30) * 1.0001
    options = {"kv_gib": kv_gib, **options}
    engine = open_engine(EngineSpec("text", str(folder), slots=32, threads=1, options=options))
    engine._pace = pace
    return engine


@pytest.mark.parametrize("family", FAMILIES)
def test_under_pressure_every_answer_is_transformers_own(folder_of, expected_of, steady, family):
    """Thirty-two at once, in half the memory: preempted, shared and forked, all are the same."""
    engine = half_of_the_memory(folder_of(family), steady(1000))
    assert run(engine, requests()) == expected_of(family)
    report = engine.memory_report()
    assert report.tier_used == report.blocks_used == 0
    assert report.copies > 0  # equal prompts shared their last block until they wrote
    assert report.reused_tokens > 0  # equal beginnings were found
    assert report.swapped_out_blocks + report.dropped_tokens > 0  # and somebody gave way


@pytest.mark.parametrize("options", [{"preempt": "swap"}, {"preempt": "recompute"}])
@pytest.mark.parametrize("native", [0, 1])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_either_way_of_giving_way_resumes_exactly(
    folder_of, expected_of, steady, family, native, options
):
    """Swapped to disk and back, or dropped and computed again: the same tokens."""
    folder, pace = folder_of(family), steady(1000)
    engine = half_of_the_memory(folder, pace, native=native, swap="disk", **options)
    assert run(engine, requests()) == expected_of(family)
    report = engine.memory_report()
    swapped = options["preempt"] == "swap"
    assert (report.swapped_out_blocks > 0) == swapped
    assert (report.recomputed_tokens > 0) == (not swapped)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 16, 32])
@pytest.mark.parametrize("native", [0, 1])
def test_the_size_of_a_batch_changes_nothing(folder_of, expected_of, batch, native):
    """The first requests alone, in pairs, and so on up to all together: the same tokens."""
    options = {"native": native, "speculate": 0}
    spec = EngineSpec("text", str(folder_of("qwen3")), slots=batch, threads=1, options=options)
    asked = dict(list(requests().items())[:batch])
    expected = expected_of("qwen3")
    assert run(open_engine(spec), asked) == {key: expected[key] for key in asked}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_fork_continues_from_its_parents_memory(folder_of, expected_of, family):
    """A fork in mid-answer copies one block at most, and both go on as if alone."""
    engine = open_engine(EngineSpec("text", str(folder_of(family)), slots=4, threads=1))
    wanted, expected = generation(PROMPTS[4]), expected_of(family)[b"g4-0"]
    engine.admit(b"parent", wanted)
    ids = []
    while len(ids) < 5:
        ids += [id_ for news in engine.step() for id_ in news.ids]
    begun = generation(PROMPTS[4], accepted=tokens.pack(ids))
    engine.fork(b"parent", b"child", begun)
    found = {b"parent": ids, b"child": list(ids)}
    while engine.has_work:
        for news in engine.step():
            found[news.key] += news.ids
    assert found == {b"parent": expected, b"child": expected}
    assert engine.memory_report().copies == 1
    engine.check_integrity()


def test_guesses_change_no_token(folder_of, expected_of):
    """With and without speculation the seeded and greedy answers are the same, in fewer steps."""
    folder, steps = folder_of("llama"), {}
    # A random model repeats nothing by itself: it is pushed to a few tokens.
    pushed = [{5: 100.0, 6: 97.0}, {5: 100.0, 6: 100.0, 7: 100.0}]
    looping = [
        msgspec.structs.replace(
            generation(PROMPTS[n], length=60),
            sampling=Sampling(b"k" * 32, temperature=0.7 * n, logit_bias=bias),
        )
        for n, bias in enumerate(pushed)
    ]
    answers = {}
    for speculate in (0, 8):
        options = {"speculate": speculate, "prefixes": 0}
        engine = open_engine(EngineSpec("text", str(folder), slots=2, threads=1, options=options))
        for n, wanted in enumerate(looping):
            engine.admit(b"%d" % n, wanted)
        ids = {b"0": [], b"1": []}
        steps[speculate] = 0
        while engine.has_work:
            steps[speculate] += 1
            for news in engine.step():
                ids[news.key] += news.ids
        answers[speculate] = ids
    assert answers[0] == answers[8]
    assert steps[8] < steps[0]
