"""When a node gives way, how far, and when it comes back: readings in, verdicts out."""

from __future__ import annotations

from hypothesis import given, strategies as st

from starai.node.yielding.base import Limits, Reading, Yield
from starai.node.yielding.hours import Hours
from starai.node.yielding.policy import CALM_S, LASTING_S, RULES, SHARES, WORK_CORES, Policy

POLITE = Limits()
GIB = 1 << 30
QUIET = Reading(
    num_cores=2, others_cores=0.0, available_bytes=8 * GIB, total_bytes=16 * GIB, own_bytes=GIB
)


def changed(**what):
    return QUIET.with_known(Reading(**what))


def run(policy, reading, begin_s, seconds, step_s=0.25):
    """The verdicts of a policy that sees one reading for some time."""
    looks = int(seconds / step_s) + 1
    return [policy.decide(reading, begin_s + number * step_s) for number in range(looks)]


def first(limits, reading):
    return Policy(limits).decide(reading, 0.0)


def test_a_quiet_device_gives_everything():
    """Nothing that asks for it: nothing is given up, and no reason is told."""
    verdict = first(POLITE, QUIET)
    assert (verdict.step, verdict.reason, verdict.share) == (Yield.NOTHING, "", 1.0)


def test_what_is_unknown_asks_for_nothing():
    """A device without sensors serves."""
    limits = Limits(max_memory_bytes=1, max_gpu_bytes=1, max_power_w=1, hours=Hours(((0, 1),)))
    assert first(limits, Reading()).step is Yield.NOTHING


def test_the_owners_work_pauses_at_once_and_moves_answers_when_it_lasts():
    """A busy core: no new tasks; two seconds later running answers go elsewhere."""
    verdicts = run(Policy(POLITE), changed(others_cores=1.0), 0.0, LASTING_S)
    assert verdicts[0].step is Yield.PAUSE
    assert verdicts[0].reason == "owner's work"
    assert verdicts[-1].step is Yield.HAND_OVER
    assert [v.share for v in verdicts] == sorted((v.share for v in verdicts), reverse=True)


def test_a_small_load_slows_down_only():
    """Half of what counts as work costs us half of the time, and no task."""
    verdict = first(POLITE, changed(others_cores=WORK_CORES * 0.6))
    assert (verdict.step, verdict.share) == (Yield.SLOW, SHARES[Yield.SLOW])


def test_a_device_that_lowered_programs_fill_is_left_to_them():
    """They are no work that we disturb, but leave nothing for an engine at the lowest priority."""
    full = changed(lowered_cores=1.9)
    assert first(POLITE, full).step is Yield.NOTHING
    verdicts = run(Policy(POLITE), full, 0.0, 2 * LASTING_S)
    assert (verdicts[-1].step, verdicts[-1].reason) == (Yield.HAND_OVER, "device is full")
    assert run(Policy(POLITE), changed(lowered_cores=1.0), 0.0, 60)[-1].step is Yield.NOTHING


def test_a_large_machine_may_have_a_busy_core():
    """A tenth of 64 cores is what counts there, not three quarters of one."""
    assert first(POLITE, changed(num_cores=64, others_cores=3.0)).step is Yield.NOTHING
    assert first(POLITE, changed(num_cores=64, others_cores=7.0)).step is Yield.PAUSE


def test_it_comes_back_after_calm_and_not_before():
    """A pause ends only after some seconds in which nothing asked for it."""
    policy = Policy(POLITE)
    policy.decide(changed(others_cores=1.0), 0.0)
    verdicts = run(policy, QUIET, 0.25, CALM_S[Yield.PAUSE])
    assert all(verdict.step is Yield.PAUSE for verdict in verdicts[:-1])
    assert verdicts[-1].step is Yield.NOTHING


def test_a_load_around_the_threshold_does_not_flap():
    """Once paused, a load a little below where it began keeps the pause."""
    policy = Policy(POLITE)
    policy.decide(changed(others_cores=WORK_CORES), 0.0)
    verdicts = run(policy, changed(others_cores=WORK_CORES * 0.8), 0.25, 60)
    assert all(verdict.step >= Yield.PAUSE for verdict in verdicts)


def test_waiting_for_cores_keeps_a_pause_but_begins_none():
    """Pressure counts our own waiting, too: it means something only while we hardly run."""
    assert first(POLITE, changed(pressure=0.9)).step is Yield.NOTHING
    policy = Policy(POLITE)
    policy.decide(changed(others_cores=1.0), 0.0)
    assert run(policy, changed(pressure=0.9), 0.25, 20)[-1].step >= Yield.PAUSE


def test_short_memory_is_given_back_and_taken_only_where_it_fits():
    """A model is unloaded when memory runs out, and stays away until there is room for it."""
    policy = Policy(POLITE)
    short = changed(available_bytes=GIB // 4)
    assert policy.decide(short, 0.0).step is Yield.UNLOAD
    freed = changed(available_bytes=2 * GIB, unloaded_bytes=2 * GIB, own_bytes=0)
    assert run(policy, freed, 0.25, 120)[-1].step is Yield.UNLOAD
    roomy = changed(available_bytes=8 * GIB, unloaded_bytes=2 * GIB, own_bytes=0)
    assert run(policy, roomy, 200.0, CALM_S[Yield.UNLOAD])[-1].step is Yield.NOTHING


def test_what_breaks_the_memory_cap_stays_away():
    """Loading again what was over the cap would break it again."""
    policy = Policy(Limits(max_memory_bytes=GIB))
    assert policy.decide(changed(own_bytes=2 * GIB), 0.0).reason == "over memory cap"
    away = changed(own_bytes=GIB // 8, unloaded_bytes=2 * GIB)
    assert run(policy, away, 0.25, 300)[-1].step is Yield.UNLOAD
    assert first(Limits(max_memory_bytes=4 * GIB), changed(own_bytes=2 * GIB)).step is Yield.NOTHING


def test_battery_heat_screen_and_gpu():
    """Each of the owner's other needs has its step and says its name."""
    assert first(POLITE, changed(on_battery=True)).reason == "battery"
    assert first(Limits(on_battery=True), changed(on_battery=True)).step is Yield.NOTHING
    assert first(POLITE, changed(on_battery=True, battery_percent=9)).step is Yield.UNLOAD
    assert first(POLITE, changed(hottest_c=92.0, critical_c=100.0)).step is Yield.SLOW
    assert first(POLITE, changed(hottest_c=96.0, critical_c=100.0)).step is Yield.HAND_OVER
    assert first(POLITE, changed(throttled=True)).step is Yield.HAND_OVER
    assert first(POLITE, changed(full_screen=True)).step is Yield.HAND_OVER
    assert run(Policy(POLITE), changed(full_screen=True), 0, 10)[-1].step is Yield.UNLOAD
    assert first(POLITE, changed(gpu_others=0.5)).step is Yield.PAUSE
    assert first(Limits(max_power_w=100), changed(gpu_power_w=150.0)).step is Yield.SLOW
    assert first(Limits(max_gpu_bytes=GIB), changed(gpu_own_bytes=2 * GIB)).step is Yield.UNLOAD


def test_hours_hold_even_without_politeness():
    """Outside its hours a node hands over, and gives its memory back after a minute."""
    limits = Limits(polite=False, hours=Hours.parse("22:00-07:00"))
    assert first(limits, changed(minute=23 * 60)).step is Yield.NOTHING
    verdicts = run(Policy(limits), changed(minute=12 * 60), 0.0, 60)
    assert verdicts[0].step is Yield.HAND_OVER
    assert verdicts[-1].step is Yield.UNLOAD
    assert verdicts[-1].reason == "outside hours"


def test_without_politeness_the_owner_is_not_looked_at():
    """--no-polite leaves the caps and nothing else."""
    busy = changed(
        others_cores=2.0, on_battery=True, full_screen=True, gpu_others=1.0, throttled=True
    )
    assert first(Limits(polite=False), busy).step is Yield.NOTHING


def test_reasons_fit_a_beat():
    """A reason travels in every beat, so it is a few words."""
    assert all(0 < len(rule.reason) <= 20 for rule in RULES)


readings = st.builds(
    Reading,
    num_cores=st.just(4),
    others_cores=st.none() | st.floats(0, 4),
    pressure=st.none() | st.floats(0, 1),
    available_bytes=st.none() | st.integers(0, 16 * GIB),
    total_bytes=st.just(16 * GIB),
    on_battery=st.none() | st.booleans(),
    battery_percent=st.none() | st.floats(0, 100),
    hottest_c=st.none() | st.floats(1, 120),
    full_screen=st.none() | st.booleans(),
    gpu_others=st.none() | st.floats(0, 1),
)


@given(st.lists(readings, max_size=40))
def test_it_always_comes_back(seen):
    """Whatever happened, a device that is quiet for a minute serves again."""
    policy = Policy(POLITE)
    for number, reading in enumerate(seen):
        verdict = policy.decide(reading, number * 0.25)
        assert 0 < verdict.share <= 1
        assert bool(verdict.reason) == (verdict.step > Yield.NOTHING)
    assert run(policy, QUIET, len(seen) * 0.25, 60)[-1].step is Yield.NOTHING


@given(st.lists(readings, max_size=20), readings)
def test_a_need_is_met_at_once_whatever_was_before(seen, last):
    """Giving way never waits: at least what a fresh policy would do is done at the same look."""
    policy = Policy(POLITE)
    for number, reading in enumerate(seen):
        policy.decide(reading, number * 0.25)
    assert policy.decide(last, len(seen) * 0.25).step >= first(POLITE, last).step
