"""llama.cpp as a peer, through llama-cpp-python's low-level calls: batches of several sequences.

Each step decodes one token of every running sequence and a share of the prompts that wait, up to
llama.cpp's own batch size, as llama-server does.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
from workload import Job, serve

#: llama.cpp's own defaults: tokens handed in at once, and computed at once.
BATCH_TOKENS, COMPUTE_TOKENS = 2048, 512
#: Cells of KV memory in all; enough for the longest prompt and for the largest batch.
CELLS = 4608
KINDS = {16: "bf16", 8: "q8_0", 4: "q4_0"}


class LlamaCpp:
    """See `workload.Peer`."""

    def __init__(self, job: Job) -> None:
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        path = f"{job.model}/{KINDS[job.bits]}.gguf"
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch = CELLS, BATCH_TOKENS, COMPUTE_TOKENS
        asked.n_seq_max, asked.kv_unified = job.slots, True
        asked.n_threads = asked.n_threads_batch = job.threads
        self._context = llama_cpp.llama_init_from_model(self._model, asked)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._free = list(range(job.slots))
        # Per key: its sequence, its tokens so far, how many of them are computed, how many to go.
        self._running: dict[int, list[Any]] = {}
        flags = llama_cpp.llama_print_system_info().decode().strip(" |\n")
        self.about: dict[str, Any] = {"version": llama_cpp.__version__, "isa": flags}

    def submit(self, key: int, prompt: list[int], max_tokens: int) -> None:
        self._running[key] = [self._free.pop(), list(prompt), 0, max_tokens]

    def step(self) -> list[int]:
        batch, rows = self._batch, {}
        batch.n_tokens = 0
        # Those that decode first: one token each.
        for key, state in sorted(
            self._running.items(), key=lambda item: len(item[1][1]) - item[1][2]
        ):
            sequence, ids, done, _ = state
            count = min(len(ids) - done, BATCH_TOKENS - batch.n_tokens)
            for position in range(done, done + count):
                last = position == len(ids) - 1
                self._add(ids[position], position, sequence, last)
                if last:
                    rows[key] = batch.n_tokens - 1
            state[2] += count
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        for key, row in rows.items():
            self._take(key, row)
        return list(rows)

    def _add(self, token: int, position: int, sequence: int, last: bool) -> None:
        batch, at = self._batch, self._batch.n_tokens
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, last
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.n_tokens += 1

    def _take(self, key: int, row: int) -> None:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        best = int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())
        state = self._running[key]
        state[1].append(best)
        state[3] -= 1
        if not state[3]:
            del self._running[key]
            llama_cpp.llama_memory_seq_rm(self._memory, state[0], -1, -1)
            self._free.append(state[0])


if __name__ == "__main__":
    serve(LlamaCpp)
