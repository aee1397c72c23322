"""Other models than the embedded one, and what people do with nodes, through `starai up`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest

from starai.models.catalog import EMBEDDED_FOLDER
from starai.testing.hub_server import HubServer, running

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up


@pytest.mark.parametrize("name", ["stories260K/stories260K.bin", "babyllama105/model5000.bin"])
def test_a_llama2c_file_tells_a_story(
    start_up: Callable[..., Up], shared_data: Path, name: str
) -> None:
    """`starai up --model FILE.bin` serves it under its own name, text in and text out."""
    file = shared_data / "models" / name
    if not file.exists():
        pytest.skip(f"no {name} in the shared data")
    up = start_up("--model", str(file))
    with up.openai() as client:
        (model,) = client.models.list().data
        answer = client.completions.create(
            model=model.id, prompt="Once upon a time", max_tokens=60, temperature=0.5, seed=1
        )
    assert model.id == file.stem
    assert len(answer.choices[0].text.split()) > 8
    up.stop()


def test_a_pulled_model_is_served_under_its_name(
    start_up: Callable[..., Up], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`starai models pull ORG/NAME`, then `starai up --model ORG/NAME`, in one home."""
    files = {file.name: file.read_bytes() for file in EMBEDDED_FOLDER.iterdir() if file.is_file()}
    with running(HubServer(models={"small/tiny": files})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        up = start_up("--model", "mock")
        said = up.starai("models", "pull", "small/tiny")
        assert "starai up --model small/tiny" in said
        listed = json.loads(up.starai("models", "--json"))
    assert {model["name"] for model in listed} == {"starai-tiny", "small/tiny"}
    up.stop()
    up.arguments = ("--model", "small/tiny")
    up.start()
    with up.openai() as client:
        answer = client.chat.completions.create(
            model="small/tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=10
        )
    assert answer.choices[0].message.content
    up.stop()


def test_a_model_that_is_not_there_is_refused_at_once(tiny: Up, tmp_path: Path) -> None:
    """Neither a folder, nor a file, nor pulled: one sentence, nothing started."""
    with pytest.raises(AssertionError, match="nobody/nothing"):
        tiny.starai("up", "--model", "nobody/nothing", home=tmp_path)
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"\x40\x00\x00\x00" * 7 + b"too short")
    with pytest.raises(AssertionError, match=r"model_file_refused"):
        tiny.starai("up", "--model", str(broken), home=tmp_path)


def node(up: Up) -> dict[str, object]:
    (only,) = json.loads(up.starai("nodes", "--json"))
    return dict(only)


def test_drain_hang_up_and_resume(start_up: Callable[..., Up]) -> None:
    """A drained node takes nothing (503) until resumed; who hangs up frees the place."""
    up = start_up("--model", "mock", "--step-delay-ms", "200")
    messages = [{"role": "user", "content": "Hi"}]

    def ask() -> str:
        with up.openai() as client:
            answer = client.chat.completions.create(model="mock", messages=messages, max_tokens=3)
        return str(answer.choices[0].finish_reason)

    up.starai("node", "drain", "node-1")
    assert node(up)["draining"]
    with pytest.raises(openai.InternalServerError) as refused:
        ask()
    assert refused.value.status_code == 503
    up.starai("node", "resume", "node-1")
    assert ask() in ("stop", "length")

    with up.openai() as client:
        stream = client.chat.completions.create(
            model="mock", messages=messages, max_tokens=500, stream=True, logit_bias={"256": -100}
        )
        next(iter(stream))
        stream.close()
    time.sleep(1)  # the answer would have gone on for a hundred seconds
    assert node(up)["running"] == 0
    up.stop()


def test_a_second_device_joins_with_a_token_once(start_up: Callable[..., Up]) -> None:
    """`starai node start --token` in a home of its own; the used token lets nobody else in."""
    up = start_up("--model", "mock")
    token = up.starai("tokens", "create").strip()
    env = {**os.environ, "STARAI_TOKEN": token}
    device = up.spawn("node", "start", "--model", "mock", home=up.home / "device", env=env)
    try:
        up.wait_for_nodes(2)
        with pytest.raises(AssertionError, match="used up"):
            up.starai(
                *("node", "start", "--token", token, "--model", "mock"), home=up.home / "thief"
            )
    finally:
        device.terminate()
        assert device.wait(30) == 0
    up.stop()
