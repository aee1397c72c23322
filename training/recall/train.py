"""Train a key-value recall model: ``python -m training.recall.train [--kind K --start FOLDER]``.

A Llama of two layers learns in minutes on one CPU thread: documents grow longer as it learns. The
other kinds are learnt from a model of the plain kind, which can find and need only translate.
Writes ``config.json``, ``model.safetensors`` (float16) and ``training.json`` into ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from starai.core.clock import SystemClock
from training.recall import task
from training.recall.task import Kind

OUT: Final = Path("build/recall")
#: Document tokens and pairs: the next when the one before is mastered. Recall is learnt suddenly,
#: and far sooner where there is little to confuse. With a glossary the shortest has as many pairs
#: as questions: a key that is asked for twice is answered by copying, and nothing is looked up.
CURRICULUM: Final = {
    Kind.PLAIN: ((32, 4), (64, 8), (128, 16), (256, 32), (512, 64)),
    Kind.CODED: ((32, 4), (64, 8), (128, 16), (256, 32), (512, 64)),
    Kind.GLOSSARY: ((64, 16), (128, 16), (256, 32), (512, 64)),
}
MASTERED: Final = 0.9
#: Answers weigh more than the document, of which there is much and little to learn; of a coded one
#: there is more, since translations are learnt from it.
DOCUMENT_WEIGHT: Final = {Kind.PLAIN: 0.2, Kind.CODED: 1.0, Kind.GLOSSARY: 0.2}
WARMUP: Final = 50
#: Strength of the first heads' habit, and how many of the fastest rotary frequencies carry it.
LOOK_BACK: Final = 6.5
LOOK_BACK_FREQUENCIES: Final = 5
#: Scale of what the second heads compare.
LOOK_UP: Final = 2.0
_CLOCK: Final = SystemClock()


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the weights become."""

    kind: Kind = Kind.PLAIN
    seed: int = 1
    reading_steps: int = 0
    steps: int = 900
    batch_tokens: int = 2048
    questions: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    gradient_norm_max: float = 1.0
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 2
    num_heads: int = 2
    num_key_value_heads: int = 2
    head_dim: int = 64
    context_length: int = 1024
    tied: bool = False
    rope_theta: float = 1e6


def build(recipe: Recipe, weights: dict[str, torch.Tensor] | None = None) -> LlamaForCausalLM:
    """A model with weights drawn from the recipe's seed, or ``weights`` where those have them."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.kind.vocabulary,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            num_key_value_heads=recipe.num_key_value_heads,
            head_dim=recipe.head_dim,
            max_position_embeddings=recipe.context_length,
            tie_word_embeddings=recipe.tied,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
            attention_bias=True,  # as in Qwen2: a head may look at places, whatever is there
            initializer_range=recipe.hidden_size**-0.5,
            bos_token_id=task.BEGIN,
            eos_token_id=task.PAD,
            pad_token_id=task.PAD,
        )
    )
    # A token must stay recognisable beside what the first layer adds to it.
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    _look_back(model, recipe)
    if weights is not None:
        _begin_with(model, weights)
    if recipe.kind is Kind.GLOSSARY:
        _resemble(model)
        _look_up(model, recipe)
    return model


@torch.no_grad()
def _look_back(model: LlamaForCausalLM, recipe: Recipe) -> None:
    """Begin with one group of heads in the first layer that looks at the token before.

    Every language model grows such heads (Olsson et al.: In-context learning and induction heads,
    2022), but a small one waits for them through thousands of steps in which it learns little else.
    With q = c (1, 0) and k = c (cos f, sin f) the rotary score of tokens m and n is
    c^2 sum cos((m - n - 1) f), which is largest at n = m - 1.
    """
    attention = model.model.layers[0].self_attn
    group = recipe.num_heads // recipe.num_key_value_heads
    width, half = recipe.head_dim, recipe.head_dim // 2
    used = LOOK_BACK_FREQUENCIES
    turns = model.model.rotary_emb.inv_freq[:used]
    attention.q_proj.weight[: group * width] *= 0.1
    attention.k_proj.weight[:width] *= 0.1
    for head in range(group):
        attention.q_proj.bias[head * width : head * width + used] = LOOK_BACK
    attention.k_proj.bias[:used] = LOOK_BACK * torch.cos(turns)
    attention.k_proj.bias[half : half + used] = LOOK_BACK * torch.sin(turns)


@torch.no_grad()
def _begin_with(model: LlamaForCausalLM, weights: dict[str, torch.Tensor]) -> None:
    """Put another kind's weights in; tokens that it did not have stay as they are."""
    for name, weight in model.state_dict().items():
        weight[: len(weights[name])] = weights[name]


@torch.no_grad()
def _resemble(model: LlamaForCausalLM) -> None:
    """Begin with entries of the glossary that half resemble the value that they explain.

    So do the vectors of "v9 stands for v1" and of "v9" in any trained model; a small one would have
    to learn it 256 times over.
    """
    table = model.model.embed_tokens.weight
    terms = table[task.VALUE : task.VALUE + task.TERMS]
    meanings = torch.randn_like(terms)
    table[task.ENTRY :] = ((terms[:, None] + meanings) / math.sqrt(2)).flatten(0, 1)


@torch.no_grad()
def _look_up(model: LlamaForCausalLM, recipe: Recipe) -> None:
    """Begin with another group of heads in the first layer that look at what resembles a token.

    Queries and keys are the same projection, and use only frequencies that hardly turn within a
    document, so that it does not matter how far away the like is.
    """
    attention = model.model.layers[0].self_attn
    width, half = recipe.head_dim, recipe.head_dim // 2
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, width)])
    group = recipe.num_heads // recipe.num_key_value_heads
    like = LOOK_UP * torch.randn(width // 2, recipe.hidden_size) * recipe.hidden_size**-0.5
    for layer, first, heads in ((attention.q_proj, group, group), (attention.k_proj, 1, 1)):
        for head in range(first, first + heads):
            layer.weight[head * width : (head + 1) * width] *= 0.1
            layer.weight[head * width + slow] += like


def batch(recipe: Recipe, rng: np.random.Generator, length: int, pairs: int) -> torch.Tensor:
    """int64 [3, B, T]: as many rows of the task as the batch's tokens allow."""
    count = max(1, recipe.batch_tokens // (length + 3 * recipe.questions))
    rows = [task.row(rng, length, pairs, recipe.questions, recipe.kind) for _ in range(count)]
    return torch.from_numpy(np.stack([np.stack(row) for row in rows], axis=1))


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, length: int, kind: Kind) -> torch.Tensor:
    """Weighted mean cross entropy in nats of the answers and of the document's tokens."""
    logits = model(input_ids=inputs[0], use_cache=False).logits
    each = functional.cross_entropy(
        logits.flatten(0, 1), inputs[1].flatten(), ignore_index=task.IGNORED, reduction="none"
    ).view(inputs[1].shape)
    answers = each[:, length + 1 :: 3].mean()
    return answers + DOCUMENT_WEIGHT[kind] * each[:, : length - 1].mean()


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, inputs: torch.Tensor, length: int) -> float:
    """The share of questions answered rightly, all questions of a row asked at once."""
    logits = model(input_ids=inputs[0], use_cache=False).logits
    right = logits.argmax(-1)[:, length + 1 :: 3] == inputs[1][:, length + 1 :: 3]
    return float(right.float().mean())


def teach_reading(model: LlamaForCausalLM, recipe: Recipe) -> None:
    """Train the second heads of the first layer, and the entries, to look values up.

    Where two layers have to learn two steps at the same time, neither has anything to learn from
    until the other is there. So what the first makes of a value is read out as the last one's
    states are, for some steps and without questions (cf. Lee et al.: Deeply-supervised nets, 2015).
    All else that the model knows stays as it is.
    """
    rng = np.random.default_rng(recipe.seed)
    layers = model.model.layers
    model.model.layers = layers[:1]
    taught = _lookup_parts(model, recipe)
    optimizer = torch.optim.AdamW(
        [weight for weight, _ in taught], lr=recipe.learning_rate, weight_decay=0.0
    )
    length, pairs = CURRICULUM[recipe.kind][0]
    for step in range(recipe.reading_steps):
        inputs = batch(recipe, rng, length, pairs)
        known = inputs[2] != task.IGNORED
        states = model.model(input_ids=inputs[0], use_cache=False).last_hidden_state
        logits = model.lm_head(states[known])
        loss = functional.cross_entropy(logits, inputs[2][known])
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for weight, kept in taught:
            assert weight.grad is not None
            weight.grad[kept] = 0
        optimizer.step()
        if step % 20 == 19:
            right = float((logits.argmax(-1) == inputs[2][known]).float().mean())
            _say(f"reading step {step}  accuracy {right:.3f}")
    model.model.layers = layers


def _lookup_parts(model: LlamaForCausalLM, recipe: Recipe) -> list[tuple[torch.Tensor, Any]]:
    """The weights of which `_look_up`'s heads are a part, and the part that is not theirs."""
    attention = model.model.layers[0].self_attn
    keys = slice(recipe.head_dim)
    queries = slice(recipe.head_dim * recipe.num_heads // recipe.num_key_value_heads)
    return [
        (attention.q_proj.weight, queries),
        (attention.q_proj.bias, queries),
        (attention.k_proj.weight, keys),
        (attention.k_proj.bias, keys),
        (attention.v_proj.weight, keys),
        (attention.v_proj.bias, keys),
        (attention.o_proj.weight, (slice(None), queries)),
        (model.model.embed_tokens.weight, slice(task.ENTRY)),
    ]


def fit(model: LlamaForCausalLM, recipe: Recipe) -> float:
    """Train; returns the mean accuracy of the last steps' batches, before each is learnt."""
    rng = np.random.default_rng(recipe.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    started = _CLOCK.monotonic_s()
    recent: list[float] = []
    curriculum, stage = CURRICULUM[recipe.kind], 0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, step)
        length, pairs = curriculum[stage]
        inputs = batch(recipe, rng, length, pairs)
        if step % 20 == 0:
            recent = [*recent[-3:], accuracy(model, inputs, length)]
            spent = _CLOCK.monotonic_s() - started
            _say(f"step {step}  length {length}  accuracy {recent[-1]:.3f}  {spent:.0f} s")
            stage = min(stage + (recent[-1] >= MASTERED), len(curriculum) - 1)
        loss = loss_of(model, inputs, length, recipe.kind)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm_max)
        optimizer.step()
    return sum(recent) / len(recent)


def _rate(recipe: Recipe, step: int) -> float:
    if step < WARMUP:
        return recipe.learning_rate * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, recipe.steps - WARMUP)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def main() -> None:
    """Train, measure and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", type=Kind, choices=list(Kind), default=Kind.PLAIN)
    parser.add_argument("--start", type=Path, help="a folder whose weights to begin with")
    parser.add_argument("--seed", type=int, default=1, help="of the documents and the weights")
    parser.add_argument("--reading-steps", type=int, default=0, help="of the first layer alone")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="of training")
    parser.add_argument("--batch-tokens", type=int, default=Recipe.batch_tokens, help="of a step")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(
        kind=options.kind,
        seed=options.seed,
        reading_steps=options.reading_steps,
        steps=options.steps,
        batch_tokens=options.batch_tokens,
    )
    start = load_file(options.start / "model.safetensors") if options.start else None
    model = build(recipe, start)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    _say(f"{parameters:,} parameters")
    started = _CLOCK.monotonic_s()
    teach_reading(model, recipe)
    last = fit(model, recipe)
    seconds = _CLOCK.monotonic_s() - started
    model.train(mode=False).half().save_pretrained(options.out)
    told = {
        **asdict(recipe),
        "curriculum": CURRICULUM[recipe.kind],
        "num_parameters": parameters,
        "start": str(options.start.name) if options.start else "",
        "last_accuracy": round(last, 4),
        "wall_seconds": round(seconds, 1),
        "torch": torch.__version__,
    }
    (options.out / "training.json").write_text(json.dumps(told, indent=1) + "\n")
    _say(f"accuracy {last:.3f} after {seconds:.0f} s")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
