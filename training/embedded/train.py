"""Trains the embedded model on one CPU core: ``python -m training.embedded.train --minutes 20``.

The same seed and number of steps give the same weights with the same PyTorch on the same kind of
CPU. ``--minutes`` measures the first steps and derives the number of steps from them; ``--steps``
repeats a run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from starai.core.clock import SystemClock
from training.embedded import batches, corpus, folder, tokenizer as tokens

OUT: Final = Path("src/starai/models/embedded")
#: Steps of rising learning rate; the time of a step is measured among them.
WARMUP: Final = 100
MEASURED: Final = range(10, 40)
#: Documents that the tokenizer learns from.
TOKENIZER_DOCUMENTS: Final = 20_000
#: Added to the seed for the text that the model is tested on and never learns.
HELD_OUT: Final = 1_000_003
HELD_OUT_BATCHES: Final = 24
QUESTIONS: Final = (
    "Hello",
    "Who are you?",
    "Tell me a story",
    "What is StarAI?",
    "Tell me a long story about a fox.",
    "What is 3 + 4?",
    "What is the capital of France?",
)
_CLOCK: Final = SystemClock()


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the weights become."""

    seed: int = 1
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    final_fraction: float = 0.02
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_norm_max: float = 1.0
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 7
    num_heads: int = 6
    num_key_value_heads: int = 2
    context_length: int = 1024


def build(recipe: Recipe) -> LlamaForCausalLM:
    """A fresh model with weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    end = tokens.ID[tokens.END]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens.VOCABULARY,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            num_key_value_heads=recipe.num_key_value_heads,
            max_position_embeddings=recipe.context_length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=tokens.ID[tokens.BEGIN],
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats over the targets of int64 [2, B, T] that count."""
    with torch.autocast("cpu", torch.bfloat16):
        logits_btv = model(input_ids=batch[0], use_cache=False).logits
    return functional.cross_entropy(
        logits_btv.float().flatten(0, 1), batch[1].flatten(), ignore_index=batches.IGNORED
    )


def rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate: linear warm-up, then a cosine to ``final_fraction`` of the peak."""
    if step < WARMUP:
        return recipe.learning_rate * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return recipe.learning_rate * (recipe.final_fraction + (1 - recipe.final_fraction) * cosine)


def fit(
    model: LlamaForCausalLM,
    recipe: Recipe,
    rows: Iterator[torch.Tensor],
    steps: int,
    minutes: float,
) -> tuple[int, float]:
    """Train for ``steps``, or if 0 for about ``minutes``.

    Returns:
        The number of steps made and the mean loss of the last tenth of them.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    losses: list[float] = []
    started = measured_from = _CLOCK.monotonic_s()
    while not steps or len(losses) < steps:
        step = len(losses)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(recipe, step, steps)
        loss = loss_of(model, next(rows))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm_max)
        optimizer.step()
        losses.append(loss.item())
        now = _CLOCK.monotonic_s()
        if len(losses) == MEASURED.start:
            measured_from = now
        if len(losses) == MEASURED.stop and not steps:
            step_s = (now - measured_from) / len(MEASURED)
            steps = max(WARMUP + 1, int(minutes * 60 / step_s))
        if len(losses) % 20 == 0 and steps:
            left_s = (now - started) / len(losses) * (steps - len(losses))
            recent = sum(losses[-20:]) / 20
            _say(f"step {len(losses)}/{steps}  loss {recent:.3f}  {left_s / 60:.1f} min left")
    last = losses[-max(1, len(losses) // 10) :]
    return len(losses), sum(last) / len(last)


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe) -> float:
    """The mean loss on text of another seed."""
    rows = batches.rows(
        tokenizer, recipe.seed + HELD_OUT, recipe.batch_tokens, recipe.context_length
    )
    losses = [loss_of(model, batch).item() for batch in itertools.islice(rows, HELD_OUT_BATCHES)]
    return sum(losses) / len(losses)


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, question: str) -> tuple[str, int]:
    """One answer at temperature 0.8 and how many tokens it took."""
    asked, _ = tokens.encode(tokenizer, [corpus.Turn("user", question)])
    asked.append(tokens.ID[tokens.ROLES["assistant"]])
    speaker: Any = model  # whose types ask for a mixin that Llama has
    said = speaker.generate(
        torch.tensor([asked]), do_sample=True, temperature=0.8, top_k=64, max_new_tokens=400
    )[0, len(asked) :]
    return tokenizer.decode(said.tolist(), skip_special_tokens=True), len(said)


def main() -> None:
    """Train, measure, write the folder and print a few answers."""
    options = _options()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    recipe = Recipe(seed=options.seed)
    started = _CLOCK.monotonic_s()
    tokenizer = tokens.learn(itertools.islice(corpus.documents(recipe.seed), TOKENIZER_DOCUMENTS))
    model = build(recipe)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    _say(f"{parameters:,} parameters, {tokenizer.get_vocab_size()} tokens in the vocabulary")
    rows = batches.rows(tokenizer, recipe.seed, recipe.batch_tokens, recipe.context_length)
    steps, train_loss = fit(model, recipe, rows, options.steps, options.minutes)
    model.train(mode=False).half().float()  # so that the weights are measured as they are stored
    validation_loss = held_out_loss(model, tokenizer, recipe)
    seconds = _CLOCK.monotonic_s() - started
    told = {
        "name": "starai-tiny",
        **asdict(recipe),
        "steps": steps,
        "tokens_seen": steps * recipe.batch_tokens,
        "warmup_steps": WARMUP,
        "corpus": {"mixture": dict(corpus.MIXTURE), "goes_on": corpus.GOES_ON},
        "model": {"num_parameters": parameters, "vocab_size": tokens.VOCABULARY},
        "train_loss_nats": round(train_loss, 4),
        "validation_loss_nats": round(validation_loss, 4),
        "wall_seconds": round(seconds, 1),
        "hardware": _hardware(),
        "command": f"python -m training.embedded.train --seed {recipe.seed} --steps {steps}",
    }
    folder.write(model, tokenizer, options.out, told)
    _say(f"train {train_loss:.3f}, held out {validation_loss:.3f} nats, {seconds:.0f} s")
    torch.manual_seed(recipe.seed)
    for question in QUESTIONS:
        text, length = answer(model, tokenizer, question)
        _say(f"\n> {question}  ({length} tokens)\n{text}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the text and of the weights")
    parser.add_argument("--minutes", type=float, default=20, help="how long to train, about")
    parser.add_argument("--steps", type=int, default=0, help="exactly this many steps instead")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder to write")
    return parser.parse_args()


def _hardware() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
