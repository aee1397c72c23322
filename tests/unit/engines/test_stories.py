"""Real models tell stories: llama2.c's stories260K and babyllama105, through the worker process."""

from __future__ import annotations

import anyio
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.engines.base import EngineSpec
from starai.engines.process import EngineWorker, engine_process
from starai.engines.registry import open_engine
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling

STORIES = "models/stories260K/stories260K.bin"
BABY = "models/babyllama105/model5000.bin"


def generation(ids, max_tokens, temperature, accepted=()):
    return Generation(
        prompt=tokens.pack(list(ids)),
        max_tokens=max_tokens,
        sampling=Sampling(b"k" * 32, temperature=temperature),
        stop_token_ids=(1, 2),
        salt=b"s" * 16,
        accepted=tokens.pack(list(accepted)),
    )


@pytest.fixture
def model_path(shared_data, request):
    path = shared_data / request.param
    if not path.is_file():
        pytest.skip(f"no {request.param}")
    return str(path)


def tell(path, temperature=0.0, max_tokens=80):
    engine = open_engine(EngineSpec("text", path, threads=1))
    codec = open_codec(open_model(path))
    engine.admit(b"a", generation(codec.encode("Once upon a time"), max_tokens, temperature))
    ids = []
    while engine.has_work:
        ids += [id_ for news in engine.step() for id_ in news.ids]
    return codec.decode(ids)


@pytest.mark.parametrize("model_path", [STORIES], indirect=True)
def test_stories260k_tells_its_known_story(model_path):
    """Greedy, word for word what llama2.c prints for this checkpoint."""
    assert tell(model_path).startswith(
        ", there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )


@pytest.mark.parametrize("model_path", [BABY], indirect=True)
def test_babyllama_tells_a_story_character_by_character(model_path):
    """A model of characters writes words."""
    story = tell(model_path, max_tokens=120)
    assert story.startswith(", there was a ")
    assert len(story) == 120


async def tell_through(worker: EngineWorker, wanted: Generation, upto: int = 10**6) -> list[int]:
    ids: list[int] = []
    worker.admit(b"a", wanted)
    with anyio.fail_after(30):
        while len(ids) < upto:
            for news in await worker.events():
                assert not news.error
                ids += news.ids
                if news.finish:
                    return ids
    return ids


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("model_path", [STORIES], indirect=True)
async def test_another_process_carries_on_mid_sentence(model_path):
    """A story broken off with its process is finished by another one, token for token."""
    prompt = open_codec(open_model(model_path)).encode("Tom and Sue")
    spec = EngineSpec("text", model_path, threads=1)
    async with engine_process(spec) as first:
        broken_off = (await tell_through(first, generation(prompt, 120, 0.8), upto=37))[:37]
    async with engine_process(spec) as second:
        rest = await tell_through(second, generation(prompt, 120, 0.8, broken_off))
        whole = await tell_through(second, generation(prompt, 120, 0.8))
    assert broken_off + rest == whole
