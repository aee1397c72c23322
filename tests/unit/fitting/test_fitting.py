"""The fit rule and the predictions: what devices get, why, and what always holds."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from starai.devices import Battery, Cpu, Device, Gpu, Rates
from starai.devices.presets import find_preset
from starai.fitting import (
    FACTORS,
    Plan,
    Pool,
    Wishes,
    Work,
    fit,
    from_slice,
    need,
    pools,
    predict,
    work_of,
)
from starai.fitting.correcting import corrected
from starai.models.library import QUANTISATIONS, library

GIB = 1 << 30


def plan_for(preset_id: str, wishes: Wishes | None = None) -> Plan:
    preset = find_preset(preset_id)
    places = pools(preset.device(), preset.rates, {preset.name: preset.rates})
    return fit(places, library(), wishes or Wishes())


def billions(plan: Plan) -> float:
    return plan.choices[0].model.parameters / 1e9


@pytest.mark.parametrize(
    ("device", "least", "most"),
    [
        ("a100-80gb", 65, 80),
        ("rtx3060-12gb", 3, 8.5),
        ("rtx4090-24gb", 20, 35),
        ("desktop-8-cores", 1, 21),
        ("cpu-2-cores", 0.2, 1.5),
        ("phone-6gb", 0.1, 0.7),
        ("pi4-4gb", 0.1, 0.5),
    ],
)
def test_devices_get_the_class_that_people_run_on_them(
    device: str, least: float, most: float
) -> None:
    """Billions of weights: 70 on an A100, 3 to 8 on an RTX 3060, the least on a phone."""
    assert least <= billions(plan_for(device)) <= most


def test_a_large_gpu_gets_a_quantised_model_and_a_telephone_the_smallest() -> None:
    """A 70B model on one card is not 16 bits wide; nothing gets less than a telephone."""
    assert plan_for("a100-80gb").choices[0].quantisation.startswith("Q")
    sizes = {name: billions(plan_for(name)) for name in ("phone-6gb", "cpu-4-cores", "l4-24gb")}
    assert sizes["phone-6gb"] == min(sizes.values())


def test_several_models_share_a_device() -> None:
    """Beside the main model goes one of another kind, and together they fit."""
    plan = plan_for("a100-40gb")
    assert len(plan.choices) > 1
    assert len({choice.model.modality for choice in plan.choices}) > 1
    assert sum(one.need.total for one in plan.choices) <= plan.choices[0].pool.memory_bytes
    assert len(plan_for("a100-40gb", Wishes(models=1)).choices) == 1


def test_the_reasons_are_told() -> None:
    """What there is, what is chosen, and why not the next larger one."""
    reasons = "\n".join(plan_for("rtx3060-12gb").reasons)
    assert "11.0 GiB for models" in reasons
    assert "by its data sheet" in reasons
    assert "GiB left" in reasons
    assert "needs" in reasons


def test_no_money_is_made_with_models_that_forbid_it() -> None:
    """A research licence keeps a model out, unless the supplier says otherwise."""
    models = [model for model in library() if model.name == "qwen2.5-3b"]
    pool = Pool("x", "nvidia", 24 * GIB, 1e12, 1e14)
    refused = fit((pool,), models)
    assert not refused.choices
    assert "licence" in refused.reasons[1]
    assert fit((pool,), models, Wishes(refused_licences=())).choices


def test_files_must_find_room_on_the_disk() -> None:
    """What is chosen fits on the disk together, and a full disk is said."""
    pool = Pool("x", "nvidia", 24 * GIB, 1e12, 1e14)
    plan = fit((pool,), library(), Wishes(disk_bytes=6 * GIB))
    assert 0 < sum(choice.need.weights for choice in plan.choices) <= 6 * GIB
    assert any("of disk" in reason for reason in plan.reasons)
    assert not fit((pool,), library(), Wishes(disk_bytes=1)).choices


def test_a_device_that_is_good_for_nothing_is_told_so() -> None:
    """Not enough memory, or too slow: no choice, and the reasons."""
    tiny = Pool("watch", "cpu", 64 << 20, 1e9, 1e9)
    plan = fit((tiny,), library())
    assert plan.choices == ()
    assert "no model usefully" in plan.reasons[-1]


def test_pools_of_a_device() -> None:
    """Equal GPUs are one pool; a processor is used alone; whoever carries a device keeps most."""
    gpu = Gpu("nvidia", "T4", 16 * GIB)
    rates = {"T4": Rates(320e9, 65e12, measured=False)}
    (both,) = pools(Device("linux", gpus=(gpu, gpu)), gpus=rates)
    assert both.name == "2 x T4"
    assert both.memory_bytes == pytest.approx(2 * 0.92 * 16 * GIB, rel=1e-6)
    (alone,) = pools(Device("linux", memory_bytes=8 * GIB, gpus=(gpu,)), Rates(2e10, 1e11))
    assert (alone.kind, alone.memory_bytes, alone.measured) == ("cpu", 4 * GIB, True)
    (carried,) = pools(Device("linux", memory_bytes=8 * GIB, battery=Battery(50, on_mains=True)))
    assert carried.memory_bytes == 2 * GIB
    (slow,) = pools(Device("linux", Cpu("Cortex-A76", threads=4), gpus=(gpu,)), gpus=rates)
    assert slow.slow_host


POOLS = st.builds(
    Pool,
    name=st.just("x"),
    kind=st.sampled_from(sorted(FACTORS)),
    memory_bytes=st.integers(0, 700 * GIB),
    read_bytes_per_s=st.floats(1e9, 1e13),
    operations_per_s=st.floats(1e9, 1e15),
    slow_host=st.booleans(),
)
ANY = st.sampled_from(library())
WISHES = st.builds(
    Wishes,
    sequences=st.integers(0, 16),
    context=st.sampled_from([512, 4096, 32768]),
    models=st.integers(1, 4),
)


@given(st.lists(POOLS, min_size=1, max_size=2), WISHES)
def test_whatever_is_chosen_fits_and_is_fast_enough(places: list[Pool], wishes: Wishes) -> None:
    """No plan promises memory that is not there, nor a model that is too slow to offer."""
    places = [msgspec.structs.replace(pool, name=str(n)) for n, pool in enumerate(places)]
    plan = fit(places, library(), wishes)
    assert len(plan.choices) <= wishes.models
    for pool in places:
        mine = [choice for choice in plan.choices if choice.pool == pool]
        assert sum(choice.need.total for choice in mine) <= pool.memory_bytes
    for choice in plan.choices:
        assert choice.prediction.prefill_tps >= wishes.prefill_tps
        if choice.model.modality != "embedding":
            assert choice.prediction.decode_tps >= wishes.decode_tps
            assert choice.context >= wishes.context
    assert plan.reasons
    assert fit(places, library(), wishes) == plan


@given(POOLS, ANY, st.integers(1, 8192), st.floats(1.1, 10))
def test_more_of_anything_is_never_slower(
    pool: Pool, model: Any, length: int, times: float
) -> None:
    """Faster memory or arithmetic helps or does nothing; a longer context costs or does nothing."""
    work = work_of(model, QUANTISATIONS["Q8_0"])
    told = predict(work, pool, length)
    better = msgspec.structs.replace(pool, read_bytes_per_s=pool.read_bytes_per_s * times)
    stronger = msgspec.structs.replace(pool, operations_per_s=pool.operations_per_s * times)
    assert predict(work, better, length).decode_tps >= told.decode_tps
    assert predict(work, stronger, length).prefill_tps >= told.prefill_tps
    assert predict(work, pool, length + 1000).decode_tps <= told.decode_tps


@given(ANY, st.integers(1, 100_000), st.integers(1, 64))
def test_memory_grows_with_everything(model: Any, context: int, sequences: int) -> None:
    """Finer weights, longer contexts and more answers never need less."""
    kinds = [QUANTISATIONS[name] for name in ("Q4_K_M", "Q8_0", "BF16")]
    totals = [need(model, kind, context, sequences, "cpu").total for kind in kinds]
    assert totals == sorted(totals)
    more = need(model, kinds[0], context + 1, sequences + 1, "cpu").total
    assert more >= totals[0]


def test_a_prompt_is_faster_than_an_answer() -> None:
    """Tokens of a prompt share one reading of the weights."""
    told = predict(Work(10**9, 10**9), Pool("x", "cpu", GIB, 2e10, 2e11))
    assert told.prefill_tps > told.decode_tps > 0
    assert (
        predict(Work(10**9, 10**9, answers=False), Pool("x", "cpu", 0, 2e10, 2e11)).decode_tps == 0
    )


def test_a_few_layers_speak_for_all() -> None:
    """A pass costs what it costs at all, each layer, and the output layer's reading."""
    pool = Pool("x", "cpu", GIB, 1e9 / FACTORS["cpu"].memory, 1e12)
    told = from_slice(40, (0.002, 0.001), (0.01, 0.02), 256, 58 * 10**6, pool)
    assert told.decode_tps == pytest.approx(1 / (0.002 + 0.040 + 0.058))
    assert told.prefill_tps == pytest.approx(256 / (0.01 + 0.8 + 0.058))


@given(st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_real_tasks_correct_a_prediction(predicted: float, true: float) -> None:
    """Ten equal measurements leave under 3 % of the first error; none overshoots."""
    expected = predicted
    for number in range(1, 11):
        before, expected = expected, corrected(expected, true, number)
        assert abs(expected - true) <= abs(before - true) * (1 + 1e-9)
    assert abs(expected - true) <= 0.08 * abs(predicted - true) + 1e-9
    assert corrected(0.0, true, 1) == true


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """benchmarks/matching/fit.py, as a module."""
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "matching" / "fit.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_fit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys  # noqa: PLC0415 - dataclasses look their module up

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_measured_devices_are_predicted(shared_data: Path, benchmark: Any) -> None:
    """The median error over all pairs is under 25 %, also for chips left out of the fit."""
    rows, left = benchmark.measured_rows()
    with (shared_data / "devices/llm_speed_geerling.csv").open() as file:
        assert len(rows) + len(left) == len(list(csv.DictReader(file)))
    assert len(left) == 3
    assert median(abs(row.error(FACTORS)) for row in rows) < 0.25
    assert median(map(abs, benchmark.left_out_errors(rows))) < 0.25


def test_the_cluster_is_placed(shared_data: Path, benchmark: Any) -> None:
    """Each of openb's 1,523 nodes gets a model, and none more than it can hold."""
    assert shared_data.is_dir()
    found = benchmark.placed()
    assert sum(found.values()) == 1523
    assert all(chosen != "nothing" for _, chosen, _ in found)
