"""The fit rule: the best model that has room and is fast enough, then what fits beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from starai.fitting.base import Choice, Need, Plan, Pool, Wishes
from starai.fitting.memory import need
from starai.fitting.speed import predict, work_of
from starai.models.library import QUANTISATIONS, LibraryModel

#: Answers at once that are usual: enough to share a GPU's reading of weights among them.
_SEQUENCES: Final = {"cpu": 1}
_GPU_SEQUENCES: Final = 4
#: A context is doubled while there is room for it.
_STEP: Final = 2
#: Models published within the same half year count as equally modern.
_MONTHS: Final = 6
#: Counted as the same size class: sizes whose ratio is below this.
_SAME_CLASS: Final = 1.25
#: A model that does what no chosen one does may have this share of the memory: the rest is the
#: main model's.
_NEW_SHARE: Final = 0.15
_GIB: Final = 1 << 30
#: What is wished for where nobody says anything.
USUAL: Final = Wishes()


class _Rated(msgspec.Struct, frozen=True):
    choice: Choice
    worth: tuple[float, ...]


def fit(pools: Sequence[Pool], models: Iterable[LibraryModel], wishes: Wishes = USUAL) -> Plan:
    """What to serve on some pools, as many models as ``wishes`` allows, and why.

    The largest model comes first: its size counted as the geometric mean of all and active
    weights (a mixture is worth less than its size) times what its quantisation keeps. Of one size
    class the newer, then the finer quantisation wins. Beside it goes whatever has room still and
    does what no chosen model does, then the next best.
    """
    models = list(models)
    left = [pool.memory_bytes for pool in pools]
    choices: list[Choice] = []
    reasons: list[str] = []
    for number, pool in enumerate(pools):
        reasons.append(_describe(pool))
        while len(choices) < wishes.models:
            free = msgspec.structs.replace(pool, memory_bytes=left[number])
            first = not any(choice.pool.name == pool.name for choice in choices)
            rated, refusals = _rate(free, models, wishes, choices, pool.memory_bytes)
            if not rated:
                reasons += refusals if first else []
                break
            best = _widened(max(rated, key=lambda one: one.worth).choice, free, wishes)
            choice = msgspec.structs.replace(best, pool=pool)
            left[number] -= choice.need.total
            choices.append(choice)
            reasons += [*(refusals if first else []), _explain(choice, left[number])]
    if not choices:
        reasons.append("nothing in the library fits: this device can serve no model usefully")
    return Plan(tuple(choices), tuple(reasons))


def size_of(model: LibraryModel) -> float:
    """How much a model is worth, in weights: sqrt(all x active)."""
    shape = model.shape
    whole = shape.layer_weights + shape.table
    return math.sqrt(whole * model.active_parameters)


def _rate(
    pool: Pool,
    models: Sequence[LibraryModel],
    wishes: Wishes,
    chosen: Sequence[Choice],
    whole: int,
) -> tuple[list[_Rated], list[str]]:
    """Everything that could be served, and why what is just larger could not.

    ``whole`` is the pool's memory before anything was chosen.
    """
    names = {choice.model.name for choice in chosen}
    classes = {choice.model.modality for choice in chosen}
    disk = wishes.disk_bytes - sum(choice.need.weights for choice in chosen)
    rated: list[_Rated] = []
    refused: list[tuple[float, str]] = []
    for model in models:
        if model.name in names or (not chosen and model.modality == "embedding"):
            continue
        if model.licence in wishes.refused_licences:
            refused.append((size_of(model), f"{model.name}: its licence {model.licence} forbids"))
            continue
        why = ""
        for quantisation in model.quantisations or wishes.quantisations:
            choice = _try(pool, model, quantisation, wishes, disk)
            if isinstance(choice, Choice):
                is_new = bool(classes) and model.modality not in classes
                if not is_new or choice.need.total <= _NEW_SHARE * whole:
                    rated.append(_Rated(choice, _worth(choice, is_new)))
            else:
                why = choice
        if why and not any(one.choice.model is model for one in rated):
            refused.append((size_of(model), f"{model.name} {why}"))
    best = max((size_of(one.choice.model) for one in rated), default=0.0)
    # What lies just above the chosen size is what people ask about.
    above = sorted(entry for entry in refused if entry[0] > best)[:2]
    return rated, [text for _, text in above]


def _try(
    pool: Pool, model: LibraryModel, quantisation: str, wishes: Wishes, disk: int
) -> Choice | str:
    kind = QUANTISATIONS[quantisation]
    if model.context < wishes.context and model.modality != "embedding":
        return f"is made for {model.context} tokens, under {wishes.context}"
    sequences = wishes.sequences or _SEQUENCES.get(pool.kind, _GPU_SEQUENCES)
    context = min(wishes.context, model.context)
    needed = need(model, kind, context, sequences, pool.kind)
    if needed.total > pool.memory_bytes:
        return (
            f"needs {_gib(needed.total)} as {quantisation} for {sequences} answers of {context} "
            f"tokens; there are {_gib(pool.memory_bytes)}"
        )
    if wishes.disk_bytes and needed.weights > disk:
        return f"as {quantisation} takes {_gib(needed.weights)} of disk; {_gib(disk)} are free"
    prediction = predict(work_of(model, kind), pool)
    if model.modality != "embedding" and prediction.decode_tps < wishes.decode_tps:
        return (
            f"would give {prediction.decode_tps:.1f} tokens a second, under {wishes.decode_tps:g}"
        )
    if prediction.prefill_tps < wishes.prefill_tps:
        return (
            f"would read {prediction.prefill_tps:.0f} prompt tokens a second, under "
            f"{wishes.prefill_tps:g}"
        )
    return Choice(pool, model, quantisation, sequences, context, needed, prediction)


def _worth(choice: Choice, is_new: bool) -> tuple[float, ...]:
    """What is new first, then size class, then purpose, age, quantisation and size."""
    model, kept = choice.model, QUANTISATIONS[choice.quantisation].kept
    year, month = map(int, model.released.split("-"))
    size = size_of(model)
    size_class = round(math.log(size * kept) / math.log(_SAME_CLASS))
    age = (12 * year + month) // _MONTHS
    return (is_new, size_class, not model.special, age, kept, size)


def _widened(choice: Choice, pool: Pool, wishes: Wishes) -> Choice:
    """The same with as much context as there is room for."""
    kind = QUANTISATIONS[choice.quantisation]
    enough = min(wishes.context_enough, choice.model.context)
    while choice.context < enough:
        context = min(choice.context * _STEP, enough)
        needed: Need = need(choice.model, kind, context, choice.sequences, pool.kind)
        if needed.total > pool.memory_bytes:
            break
        choice = msgspec.structs.replace(choice, context=context, need=needed)
    return choice


def _describe(pool: Pool) -> str:
    how = "measured" if pool.measured else "by its data sheet"
    return (
        f"{pool.name}: {_gib(pool.memory_bytes)} for models, reads "
        f"{pool.read_bytes_per_s / 1e9:.0f} GB/s, {pool.operations_per_s / 1e12:.3g} TFLOPS ({how})"
    )


def _explain(choice: Choice, left: int) -> str:
    needed, told = choice.need, choice.prediction
    decode = f", {told.decode_tps:.0f} tokens/s" if told.decode_tps else ""
    return (
        f"{choice.model.name} {choice.quantisation}: weights {_gib(needed.weights)} + "
        f"{choice.sequences} x {choice.context} tokens {_gib(needed.kv)} + overhead "
        f"{_gib(needed.overhead)} = {_gib(needed.total)}{decode}, prompts "
        f"{told.prefill_tps:.0f} tokens/s; {_gib(left)} left"
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
