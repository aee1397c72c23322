"""OpenVINO GenAI as a peer: its continuous-batching pipeline on an optimum-intel export."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai
from workload import Job, serve


class OpenVino:
    """See `workload.Peer`."""

    def __init__(self, job: Job) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = job.options.get("cache_gib", 4)
        scheduler.max_num_seqs = job.slots
        scheduler.enable_prefix_caching = False
        settings = {"INFERENCE_NUM_THREADS": job.threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            job.model, scheduler, "CPU", settings
        )
        core = openvino.Core()
        able = " ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        self.about: dict[str, Any] = {"version": openvino_genai.get_version(), "isa": able}
        self._handles: dict[int, Any] = {}
        self._left: dict[int, int] = {}
        self._run = 0

    def submit(self, key: int, prompt: list[int], max_tokens: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.min_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        self._run += 1
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._handles[key] = self._pipeline.add_request(self._run, ids, config)
        self._left[key] = max_tokens

    def step(self) -> list[int]:
        self._pipeline.step()
        keys: list[int] = []
        for key, handle in self._handles.items():
            while handle.can_read():
                for output in handle.read().values():
                    keys += [key] * len(output.generated_ids)
        for key in set(keys):
            self._left[key] -= keys.count(key)
            if self._left[key] <= 0:
                del self._handles[key], self._left[key]
        return keys


if __name__ == "__main__":
    serve(OpenVino)
