"""`starai node fit`, `starai node profile` and `starai models library`: what suits which device."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from starai.cli.options import AT_LEAST_ONE, home_option, json_option
from starai.cli.tables import show_json, show_table
from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused
from starai.devices.presets import find_preset
from starai.engines.base import EngineSpec
from starai.fitting import Choice, Plan, Wishes, fit as fit_rule, from_slice, need, pools
from starai.local.fitness import Fitness, fitness
from starai.local.home import Home
from starai.models.catalog import MOCK_NAME, open_model
from starai.models.library import QUANTISATIONS, LibraryModel, library as all_models, weight_bytes

_GIB = 1 << 30
#: What a model is listed with: the smallest common quantisation, and a short conversation.
_SMALLEST = "Q4_K_M"
_SHORT = 4096


@click.command()
@home_option
@json_option
@click.option(
    "--device",
    default="",
    metavar="NAME",
    help="Another device than this one, by its data sheet: rtx3060-12gb, a100-80gb, phone-6gb.",
)
@click.option(
    "--dry-run", is_flag=True, help="Keep nothing: what is measured is not written to the home."
)
@click.option("--again", is_flag=True, help="Measure again, although this device is known.")
@click.option(
    "--sequences", type=AT_LEAST_ONE, default=None, help="Answers at once to have memory for."
)
@click.option(
    "--context",
    type=AT_LEAST_ONE,
    default=Wishes().context,
    show_default=True,
    help="Tokens of each answer, its prompt included, to have memory for at least.",
)
@click.option(
    "--models",
    "at_most",
    type=AT_LEAST_ONE,
    default=Wishes().models,
    show_default=True,
    help="Models beside each other at most.",
)
def fit(
    home: Home, *, as_json: bool, device: str, dry_run: bool, again: bool, **given: Any
) -> None:
    """Which models suit this device, how fast they would be, and why these.

    The processor's memory bandwidth and arithmetic are measured once and kept in the home folder;
    a GPU's too, where the engine can use it, else they are looked up. From them follows a
    prediction for each model of the library. A node's first tasks correct what was predicted.
    """
    disk = 0
    if device:
        preset = find_preset(device)
        rates = {preset.name: preset.rates}
        places = pools(preset.device(), preset.rates, rates)
    else:
        known = _this(home, again=again, keep=not dry_run)
        places, disk = known.pools, known.device.disk_free_bytes
    wishes = Wishes(
        sequences=given["sequences"] or 0,
        context=given["context"],
        models=given["at_most"],
        disk_bytes=disk,
    )
    plan = fit_rule(places, all_models(), wishes)
    if as_json:
        show_json({"choices": [_row(one) for one in plan.choices], "reasons": plan.reasons})
        return
    _show(plan)


@click.command()
@home_option
@json_option
@click.option("--again", is_flag=True, help="Measure again, although this device is known.")
def profile(home: Home, *, as_json: bool, again: bool) -> None:
    """What this device is, and how fast it reads memory and multiplies."""
    found = _this(home, again=again, keep=True)
    if as_json:
        show_json(found)
        return
    device, cpu = found.device, found.device.cpu
    rows = [
        ("system", device.system),
        ("processor", f"{cpu.model}, {cpu.cores} cores, {cpu.threads} threads"),
        ("instructions", " ".join(cpu.flags)),
        ("memory", f"{_gib(device.memory_bytes)}, {_gib(device.available_bytes)} available"),
        ("disk", f"{_gib(device.disk_free_bytes)} free"),
        ("battery", _battery(found)),
        ("network", device.network),
        ("processor reads", f"{found.cpu.read_bytes_per_s / 1e9:.1f} GB/s"),
        ("processor multiplies", f"{found.cpu.operations_per_s / 1e12:.2f} TFLOPS"),
    ]
    for gpu in device.gpus:
        rows.append(("GPU", f"{gpu.name}, {_gib(gpu.memory_bytes)}"))
        rates = found.gpus.get(gpu.name)
        if rates is not None:
            how = "measured" if rates.measured else "by its data sheet"
            speed = f"{rates.read_bytes_per_s / 1e9:.0f} GB/s, {rates.operations_per_s / 1e12:.0f}"
            rows.append(("GPU reads, multiplies", f"{speed} TFLOPS ({how})"))
    show_table("This device", ("", "what"), rows, "")


@click.command()
@json_option
@click.option(
    "--modality",
    type=click.Choice(["text", "text+image", "embedding"]),
    default=None,
    help="Only models that take and give this.",
)
def library(*, as_json: bool, modality: str | None) -> None:
    """The open models that StarAI knows: their size, what they need and what they are for."""
    chosen = [model for model in all_models() if modality in (None, model.modality)]
    if as_json:
        show_json([_entry(model) for model in chosen])
        return
    columns = ("name", "parameters", "context", "weights", "needs", "for", "licence", "hub")
    rows = []
    for model in chosen:
        kind = QUANTISATIONS[_least(model)]
        needed = need(model, kind, min(_SHORT, model.context), 1, "cpu")
        what = " ".join(filter(None, (model.modality, model.special)))
        weights = f"{_gib(weight_bytes(model, kind))} {kind.name}"
        size = f"{model.parameters / 1e9:.2f}B"
        told = (model.name, size, model.context, weights, _gib(needed.total), what)
        rows.append((*told, model.licence, model.hub))
    show_table("Library", columns, rows, "")


@click.command(name="try")
@home_option
@json_option
@click.argument("model")
@click.option(
    "--bits",
    type=click.Choice(["16", "8", "4"]),
    default="16",
    show_default=True,
    help="Of the weights: 16 as they are, 8 and 4 quantised while loading.",
)
def try_model(home: Home, *, as_json: bool, model: str, bits: str) -> None:
    """How fast MODEL would be on this device, from a few of its layers that are run here.

    MODEL is what `starai up --model` takes. Only some layers are loaded, so that a model can be
    tried for which there is hardly memory. `starai engine bench` runs all of it.
    """
    manifest = open_model(model, home.models)
    if manifest.kind == MOCK_NAME:
        raise ConfigurationRefused("the model 'mock' has no layers: choose another")
    try:
        from starai.engines.text.slicing import time_slice  # noqa: PLC0415 - torch is heavy
    except ModuleNotFoundError as error:
        raise ConfigurationRefused(f"this needs {error.name}: install starai[engine]") from error
    known = _this(home, again=False, keep=False)
    told = known.expect(EngineSpec("text", model, str(home.models), options={"bits": int(bits)}))
    part = time_slice(manifest, SystemClock(), int(bits))
    head_bytes = part.table_weights * int(bits) // 8
    times = (part.token, part.prompt, part.prompt_tokens)
    timed = from_slice(part.num_layers, *times, head_bytes, known.own_pool)
    if as_json:
        show_json({"by_layers": timed, "by_memory_and_arithmetic": told, "slice": part})
        return
    rows = [
        ("by some of its layers", f"{timed.decode_tps:.1f}", f"{timed.prefill_tps:.0f}"),
        ("by memory and arithmetic", f"{told.decode_tps:.1f}", f"{told.prefill_tps:.0f}"),
    ]
    show_table(f"{manifest.name} on this device", ("", "tok/s", "prompt tok/s"), rows, "")


def _this(home: Home, *, again: bool, keep: bool) -> Fitness:
    return fitness(home, SystemClock(), again=again, keep=keep)


def _show(plan: Plan) -> None:
    columns = ("model", "as", "on", "answers", "context", "memory", "tok/s", "prompt tok/s")
    rows = [
        (
            one.model.name,
            one.quantisation,
            one.pool.name,
            one.sequences,
            one.context,
            _gib(one.need.total),
            f"{one.prediction.decode_tps:.0f}" if one.prediction.decode_tps else "-",
            f"{one.prediction.prefill_tps:.0f}",
        )
        for one in plan.choices
    ]
    show_table("What suits this device", columns, rows, "Nothing in the library fits.")
    for reason in plan.reasons:
        click.echo(f"- {reason}")
    if plan.choices:
        click.echo(f"Fetch one with: starai models pull {plan.choices[0].model.hub}")


def _row(choice: Choice) -> dict[str, object]:
    return {
        "model": choice.model.name,
        "hub": choice.model.hub,
        "quantisation": choice.quantisation,
        "pool": choice.pool.name,
        "sequences": choice.sequences,
        "context": choice.context,
        "memory_bytes": choice.need.total,
        "weight_bytes": choice.need.weights,
        "kv_bytes": choice.need.kv,
        "decode_tps": round(choice.prediction.decode_tps, 1),
        "prefill_tps": round(choice.prediction.prefill_tps, 1),
        "measured_device": choice.pool.measured,
    }


def _entry(model: LibraryModel) -> dict[str, object]:
    entry: dict[str, object] = msgspec.to_builtins(model)
    kinds = model.quantisations or tuple(kind for kind in QUANTISATIONS if kind != "MXFP4")
    smallest = QUANTISATIONS[_least(model)]
    return entry | {
        "active_parameters": model.active_parameters,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "weight_bytes": {kind: weight_bytes(model, QUANTISATIONS[kind]) for kind in kinds},
        "memory_bytes_min": need(model, smallest, min(_SHORT, model.context), 1, "cpu").total,
    }


def _least(model: LibraryModel) -> str:
    return model.quantisations[0] if model.quantisations else _SMALLEST


def _battery(found: Fitness) -> str:
    battery = found.device.battery
    if battery is None:
        return "none"
    return f"{battery.percent:.0f} %, {'on mains' if battery.on_mains else 'discharging'}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
