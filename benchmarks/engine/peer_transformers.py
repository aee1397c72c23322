"""Hugging Face transformers as a peer: its plain forward pass, or its continuous batching.

The plain one runs all waiting prompts of one length as one batch with a growing DynamicCache, as
``generate`` does. ``options["continuous"]`` uses ``init_continuous_batching`` instead.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
)
from workload import Job, Peer, serve

#: How long to wait for the background thread before looking again.
_POLL_S = 1.0
_SILENCE_S = 120.0
#: transformers' own default.
_PAGE_TOKENS = 256


def _load(job: Job) -> Any:
    torch.set_num_threads(job.threads)
    transformers.utils.logging.set_verbosity_error()
    if job.bits != 16:
        raise ValueError("transformers runs bf16 here")
    return AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
    ).eval()


def _about(attention: str) -> dict[str, Any]:
    isa = torch.backends.cpu.get_cpu_capability()
    return {
        "version": transformers.__version__,
        "isa": f"torch {torch.__version__} {isa}, {attention}",
    }


class Plain:
    """See `workload.Peer`."""

    def __init__(self, job: Job) -> None:
        self._model = _load(job)
        self.about = _about("sdpa")
        self._new: list[tuple[int, list[int], int]] = []
        self._groups: list[dict[str, Any]] = []

    def submit(self, key: int, prompt: list[int], max_tokens: int) -> None:
        self._new.append((key, prompt, max_tokens))

    @torch.inference_mode()
    def step(self) -> list[int]:
        if self._new:
            length = len(self._new[0][1])
            members = [new for new in self._new if len(new[1]) == length]
            self._new = [new for new in self._new if len(new[1]) != length]
            group = {"keys": [m[0] for m in members], "left": members[0][2]}
            group["cache"] = DynamicCache(config=self._model.config)
            group["ids"] = torch.tensor([m[1] for m in members])
            self._groups.append(group)
            return self._advance(group)
        return self._advance(self._groups[0])

    def _advance(self, group: dict[str, Any]) -> list[int]:
        done = self._model(
            group["ids"], past_key_values=group["cache"], use_cache=True, logits_to_keep=1
        )
        group["ids"] = done.logits[:, -1].argmax(-1, keepdim=True)
        group["left"] -= 1
        if not group["left"]:
            self._groups.remove(group)
        return list(group["keys"])


class Continuous:
    """See `workload.Peer`."""

    def __init__(self, job: Job) -> None:
        model = _load(job)
        pages = -(-job.context // _PAGE_TOKENS)
        config = ContinuousBatchingConfig(
            num_blocks=max(2 * pages, job.slots * 3),
            max_batch_tokens=job.options.get("max_batch_tokens", 512),
            max_requests_per_batch=job.slots,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=64)
        self._manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=config
        )
        self._manager.start()
        self.about = _about("continuous batching, sdpa, page 256")
        self._seen: dict[int, int] = {}
        self._run = 0

    def submit(self, key: int, prompt: list[int], max_tokens: int) -> None:
        self._seen[key] = 0
        self._run += 1
        self._manager.add_request(
            prompt, request_id=f"{self._run}:{key}", max_new_tokens=max_tokens,
            streaming=True, eos_token_id=-1,
        )  # fmt: skip

    def step(self) -> list[int]:
        waited = time.monotonic()
        while True:
            result = self._manager.get_result(timeout=_POLL_S)
            if result is not None:
                break
            if not self._manager.is_running() or time.monotonic() - waited > _SILENCE_S:
                raise RuntimeError("continuous batching stopped")
        if result.error:
            raise RuntimeError(result.error)
        key = int(result.request_id.partition(":")[2])
        # The first output of a finished request repeats what was streamed.
        news = len(result.generated_tokens) - self._seen[key]
        self._seen[key] += news
        return [key] * news


def open_peer(job: Job) -> Peer:
    return Continuous(job) if job.options.get("continuous") else Plain(job)


if __name__ == "__main__":
    serve(open_peer)
