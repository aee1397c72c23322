"""StarAI's own text engine as a peer: opened by its registry, driven step by step."""

from __future__ import annotations

from typing import Any

from workload import Job, serve

from starai.engines.base import EngineSpec
from starai.engines.registry import open_engine
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling


class StarAI:
    """See `workload.Peer`."""

    def __init__(self, job: Job) -> None:
        options = {"bits": job.bits, "context": job.context, **job.options}
        spec = EngineSpec("text", job.model, slots=job.slots, threads=job.threads, options=options)
        self._engine = open_engine(spec)
        self.about: dict[str, Any] = {"isa": _isa()}

    def submit(self, key: int, prompt: list[int], max_tokens: int) -> None:
        sampling = Sampling(sample_key=bytes(32), temperature=0.0)
        asked = Generation(tokens.pack(prompt), max_tokens, sampling, (), bytes(16))
        self._engine.admit(key.to_bytes(4, "big"), asked)

    def step(self) -> list[int]:
        news = self._engine.step()
        for emitted in news:
            if emitted.error:
                raise RuntimeError(emitted.error)
        return [int.from_bytes(e.key, "big") for e in news for _ in e.ids]


def _isa() -> str:
    try:
        from starai.engines.native import library  # noqa: PLC0415 - may be absent
    except ImportError:
        return "torch only"
    reason = library.why_not()
    return f"torch only ({reason})" if reason else "own kernels, -march=native"


if __name__ == "__main__":
    serve(StarAI)
