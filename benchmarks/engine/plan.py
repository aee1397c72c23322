"""Which engines are measured, with which rows, and how each is started.

Settings are what each peer's own manual recommends for a machine of few cores; differences that
remain are named in ``remark`` and printed below the tables.
"""

from __future__ import annotations

import csv
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
THREADS = 2
LAYERS = 28
SEED = 2023

#: One process per variant; a row of a process is done ``REPEATS`` times with other prompts.
REPEATS = 3
PREFILL: dict[str, Any] = {"lengths": [256, 2048]}
DECODE: dict[str, Any] = {"prompt": 256, "tokens": 48}
BATCH: dict[str, Any] = {"sizes": [8, 16, 32], "prompt": 32, "tokens": 24}
#: Of arrivals: how many, and what the trace's lengths are cut to so that two cores can serve.
REQUESTS, PROMPT_MAX, ANSWER_MAX = 40, 512, 64
#: Arrivals come at this share of what the fastest bf16 engine could serve.
UTILISATION = 0.7
#: Tokens of prompt and answer together; the longest row needs 2049.
CONTEXT = 2304
SLOTS = 32
#: The four files of weights, as sub-folders of the models' folder.
FOLDER, GGUF = "hf", "gguf"


@dataclass(frozen=True)
class Variant:
    """One engine with one kind of weights.

    ``venv`` is the peer's folder below the peers' folder; empty is the interpreter that runs this.
    """

    name: str
    title: str
    bits: int
    script: str
    model: str = FOLDER
    venv: str = ""
    rows: str = "abcd"
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    remark: str = ""

    def command(self, peers: Path) -> list[str]:
        """What starts it."""
        if self.script.endswith(".mjs"):
            return ["node", str(HERE / self.script)]
        python = peers / self.venv / "bin" / "python" if self.venv else Path(sys.executable)
        return [str(python), str(HERE / self.script)]

    def environ(self, peers: Path) -> dict[str, str]:
        """Its environment: ours, with the same number of threads for everyone."""
        own = {name: value.format(peers=peers) for name, value in self.environment.items()}
        common = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **common, **own}


#: No guessing ahead (random weights repeat themselves, guesses would come true) and no reuse of
#: prefixes, as for the peers.
_OURS = {"kv_gib": 4.0, "speculate": 0, "prefixes": 0, "waiting": 64}
_VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Its manual's advice; the runtime comes with it.
    "LD_PRELOAD": "{peers}/vllm/lib/libiomp5.so",
}
_NODE = {"STARAI_NODE_PEER": "{peers}/node"}

VARIANTS = (
    Variant("starai-16", "StarAI bf16", 16, "peer_starai.py", rows="abde", options=_OURS),
    Variant(
        "vllm-16", "vllm-cpu bf16", 16, "peer_vllm.py", venv="vllm", rows="abde", environment=_VLLM,
        remark="vllm-cpu compiles its layers with torch's inductor, from its cache; up to 2048 "
        "prompt tokens a step, its default.",
    ),
    Variant(
        "transformers-16", "transformers bf16", 16, "peer_transformers.py", rows="ab",
        remark="transformers: SDPA, DynamicCache, its forward pass in a loop like generate's.",
    ),
    Variant(
        "transformers_cb-16", "transformers CB bf16", 16, "peer_transformers.py", rows="e",
        options={"continuous": True, "max_batch_tokens": 512},
        remark="transformers CB: init_continuous_batching, SDPA, pages of 256, 512 tokens a step.",
    ),
    Variant("starai-8", "StarAI int8", 8, "peer_starai.py", rows="abde", options=_OURS),
    Variant(
        "openvino-8", "OpenVINO int8", 8, "peer_openvino.py", model="ov_int8", venv="openvino",
        rows="abd",
        remark="OpenVINO: GenAI's continuous-batching pipeline; weights int8 asymmetric per "
        "channel, or int4 asymmetric by 128 with head and embedding int8, as optimum-intel "
        "writes them; it keeps KV memory as 8 bits by default.",
    ),
    Variant(
        "llamacpp-8", "llama.cpp Q8_0", 8, "peer_llamacpp.py", model=GGUF, venv="llamacpp",
        rows="abd",
        remark="llama.cpp: llama-cpp-python, compiled here with -march=native; KV memory f16; in "
        "Q4_0 the tied head is Q6_K, as its own quantiser decides.",
    ),
    Variant(
        "node-8", "node-llama-cpp Q8_0", 8, "peer_node.mjs", model=GGUF, venv="node", rows="b",
        environment=_NODE, remark="node-llama-cpp: the prebuilt binary of npm, through JavaScript.",
    ),
    Variant("starai-4", "StarAI int4", 4, "peer_starai.py", rows="ac", options=_OURS),
    Variant(
        "openvino-4", "OpenVINO int4", 4, "peer_openvino.py", model="ov_int4", venv="openvino",
        rows="ac",
    ),
    Variant(
        "llamacpp-4", "llama.cpp Q4_0", 4, "peer_llamacpp.py", model=GGUF, venv="llamacpp",
        rows="ac",
    ),
    Variant(
        "node-4", "node-llama-cpp Q4_0", 4, "peer_node.mjs", model=GGUF, venv="node", rows="c",
        environment=_NODE,
    ),
    Variant(
        "llamacpp-16", "llama.cpp BF16", 16, "peer_llamacpp.py", model=GGUF, venv="llamacpp",
        rows="b",
    ),
)  # fmt: skip

#: The issue's letters: b is single-stream decode of 8 and 16 bits, c of 4.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a": ("prefill", PREFILL),
    "b": ("decode", DECODE),
    "c": ("decode", DECODE),
    "d": ("batch", BATCH),
}


def rows_of(variant: Variant, letters: str) -> dict[str, dict[str, Any]]:
    """The workload's rows that are asked of a variant, except arrivals."""
    return {
        _KINDS[letter][0]: _KINDS[letter][1]
        for letter in variant.rows
        if letter in letters and letter in _KINDS
    }


def trace_lengths(trace: Path, number: int) -> list[tuple[int, int]]:
    """Prompt and answer lengths of a seeded choice of the trace's requests, cut to our bounds."""
    with trace.open(newline="") as file:
        lines = [(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)]
    chosen = random.Random(SEED).sample([line for line in lines if min(line) > 0], number)
    return [(min(prompt, PROMPT_MAX), min(answer, ANSWER_MAX)) for prompt, answer in chosen]


def arrivals(lengths: list[tuple[int, int]], rate_per_s: float) -> dict[str, Any]:
    """The row of Poisson arrivals: the same moments and lengths for every engine."""
    chance = random.Random(SEED)
    at_s, requests = 0.0, []
    for prompt, answer in lengths:
        requests.append([round(at_s, 4), prompt, answer])
        at_s += chance.expovariate(rate_per_s)
    return {"requests": requests, "repeats": 1}
