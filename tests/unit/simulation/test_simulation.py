"""The event-driven simulation: sound books, the same result for the same seed, real decisions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from starai.core.errors import ConfigurationRefused
from starai.simulation.churning import Churn, length_s
from starai.simulation.network import Network
from starai.simulation.policies import POLICIES, Ours
from starai.simulation.report import make_report
from starai.simulation.running import Outcome, simulate
from starai.simulation.scenario import (
    Arrivals,
    Churn as ChurnSaid,
    Cut,
    Places,
    Scenario,
    packaged,
    read_scenario,
)
from starai.simulation.sources import PING, Sources
from starai.simulation.world import make_world

NOWHERE = Path("no-such-folder")
MADE_UP = Sources(NOWHERE, synthetic_if_absent=True)
ROUGH = Scenario(
    title="Rough",
    description="Everything goes wrong often.",
    nodes=60,
    hours=0.05,
    places=Places(cities=30, regions=3),
    arrivals=Arrivals(load=0.35),
    churn=ChurnSaid("weibull", session_h=0.05, absence_h=0.02, hangs_a_day=400.0),
    cut=Cut(60.0, 30.0, 0.3),
)


def run(scenario: Scenario, **changes: object) -> Outcome:
    return simulate(msgspec.structs.replace(scenario, **changes), MADE_UP)


@pytest.fixture(scope="module")
def rough() -> Outcome:
    return run(ROUGH)


def test_under_all_troubles_no_task_is_lost_or_paid_twice(rough: Outcome) -> None:
    """Nodes vanish, leave, hang and are cut off while they answer: the auditor finds nothing."""
    assert rough.verdict.is_sound, rough.verdict.faults
    assert rough.verdict.answered + rough.verdict.refused == len(rough.world.arrivals)
    assert {"silent", "stalled", "handed over"} <= set(rough.tally.endings)
    assert rough.tally.num_broken > 50
    assert rough.verdict.tokens_confirmed < rough.verdict.tokens_paid


def test_the_same_seed_gives_the_same_report_in_any_process(rough: Outcome) -> None:
    """Hash seeds differ between processes; the fingerprint does not."""
    program = (
        "from tests.unit.simulation import test_simulation as t;"
        "print(t.make_report(t.run(t.ROUGH)).digest())"
    )
    digests = [make_report(rough).digest()]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).resolve().parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(done.stdout.strip())
    assert len(set(digests)) == 1


def test_another_seed_gives_another_report(rough: Outcome) -> None:
    """The fingerprint covers what happened."""
    assert make_report(run(ROUGH, seed=2)).digest() != make_report(rough).digest()


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "ours"])
def test_ours_is_faster_than_what_others_use(policy: str) -> None:
    """Same nodes, same requests, same fail-over: the choice alone makes the difference."""
    scenario = msgspec.structs.replace(ROUGH, cut=Cut(), arrivals=Arrivals(load=0.15))
    own, other = run(scenario), run(scenario, policy=policy)
    assert other.verdict.is_sound, other.verdict.faults
    assert other.world.arrivals == own.world.arrivals
    ours, theirs = make_report(own).finish, make_report(other).finish
    assert ours.p50_s < theirs.p50_s
    assert ours.p95_s < 0.7 * theirs.p95_s


def test_without_trouble_everything_is_answered_at_the_first_attempt() -> None:
    """Nobody leaves and there is room: no refusal, no second attempt but hedges."""
    calm = run(ROUGH, churn=ChurnSaid(), cut=Cut(), arrivals=Arrivals(load=0.1))
    assert calm.verdict.answered == len(calm.world.arrivals)
    assert set(calm.tally.endings) <= {"", "outrun"}
    assert calm.verdict.tokens_paid == calm.verdict.tokens_confirmed


def test_nobody_there_is_a_refusal_and_no_loss() -> None:
    """All nodes are cut off for good: each request is told so."""
    dark = run(ROUGH, churn=ChurnSaid(), cut=Cut(0.0, 3600.0, 1.0), hours=0.01)
    assert dark.verdict.answered == 0
    assert dark.verdict.is_sound
    assert set(dark.tally.refusals) == {"no_node"}


def test_spot_groups_rise_and_fall_together(shared_data: Path) -> None:
    """The recorded churn takes many nodes at once, and the books stay sound."""
    scenario = msgspec.structs.replace(
        read_scenario("spot-churn"), nodes=60, arrivals=Arrivals(per_second=1.0)
    )
    outcome = simulate(scenario, Sources(shared_data, synthetic_if_absent=False))
    assert outcome.verdict.is_sound
    assert outcome.tally.moves["vanished"] >= 10
    assert outcome.tally.moves["left"] == 0


def test_gateways_hear_what_a_real_distributor_would_say() -> None:
    """Slots, context and speeds of a simulated distributor's beat are the real roster's."""
    scenario = msgspec.structs.replace(ROUGH, churn=ChurnSaid(), cut=Cut())
    network = Network(scenario, make_world(scenario, MADE_UP))
    Churn(network).start(MADE_UP)
    network.start()
    while network.events.now_s < 1.9:
        network.events.step()
    carrier = network.distributors[0]
    assert isinstance(carrier.policy, Ours)
    said, real = network.beat_of_distributor(carrier).models[0], carrier.policy.roster.models()[0]
    assert said.context_length == real.context_length
    assert said.slots == real.slots + 256
    assert (said.prefill_tps, said.decode_tps) == (real.prefill_tps, real.decode_tps)


@pytest.mark.parametrize("name", packaged())
def test_every_packaged_scenario_reads_and_says_what_it_is(name: str) -> None:
    """And data that is absent is named, unless the scenario goes on without."""
    scenario = read_scenario(name, {"nodes": 4, "hours": 0.001})
    assert len(scenario.description) > 100
    if scenario.synthetic_if_absent:
        assert PING in simulate(scenario, MADE_UP).world.made_up
    else:
        with pytest.raises(ConfigurationRefused, match=PING):
            simulate(scenario, Sources(NOWHERE, synthetic_if_absent=False))


def test_a_file_of_ones_own_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    """A field that does not exist is refused by name."""
    file = tmp_path / "mine.toml"
    file.write_text('title = "Mine"\ndescription = ""\nnodes = 3\n')
    assert read_scenario(str(file), {"seed": 9}).seed == 9
    file.write_text('title = "Mine"\ndescription = ""\nnodes = 3\nspeed = 1\n')
    with pytest.raises(ConfigurationRefused, match="speed"):
        read_scenario(str(file))
    with pytest.raises(ConfigurationRefused, match="internet"):
        read_scenario("no-such-scenario")


def test_too_many_nodes_for_one_distributor_are_refused() -> None:
    """A distributor keeps track of ten thousand; more need regions."""
    crowd = msgspec.structs.replace(ROUGH, nodes=10_001, places=Places(cities=5))
    with pytest.raises(ConfigurationRefused, match="2 regions"):
        make_world(crowd, MADE_UP)


def test_session_lengths_have_the_mean_that_was_asked_for() -> None:
    """By inversion over evenly spread chance, for light and heavy tails."""
    for shape in (0.5, 1.0, 2.0):
        number = 200_000
        mean = sum(length_s(100.0, shape, (n + 0.5) / number) for n in range(number)) / number
        assert mean == pytest.approx(100.0, rel=0.01)
