"""One self-contained HTML page about one run or several: numbers, plots, what is real and what not.

Nothing in it comes from a network, and it has no script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import numpy as np

from starai.simulation import plots
from starai.simulation.report import COMPARED, comparison, make_report, rows
from starai.simulation.running import Outcome
from starai.simulation.sources import Floats
from starai.simulation.tally import Tally

#: Nodes that are drawn as points; of more, every n-th.
POINTS_MAX: Final = 2000
#: What is drawn over time, where it happened at all; the most frequent first.
LINES_MAX: Final = 6
#: Counted by the minute too, but nothing that failed.
NO_FAILURES: Final = {"asked", "answered", "joined", "attempt outrun"}

REAL: Final = (
    "Who gets a task, who waits and who is trusted is decided by the code that the services run: "
    "the roster and its pools, finish times and the power of two, the prefix index, the fair "
    "queue, the ladder, the hedges, and the limits of time and number around them."
)
MODELLED: Final = (
    "Devices (one prompt is read at a time, answers are written together, a step grows with each "
    "further answer), the network (half the measured round trip each way, no loss), beats (what "
    "they would say is said when something changes), and the carrying of tasks over attempts, "
    "which follows the services' rules event by event with their constants. Nothing is sealed or "
    "signed. Each region has one distributor and one gateway, which do not fail here; slow is "
    "not taken for stalled; a gateway that sees no room refuses at once; a node that is cut off "
    "drops its work and cannot confirm what it had written; cities are equally large; speeds of "
    "reading, slots, contexts and the last mile are assumed, as starai.simulation.world says."
)
BOOKS: Final = (
    "An auditor with books of its own saw every offer, booking and end: every request is answered "
    "or refused with a reason, every answer is paid for from its first token to its last, once. "
    "What a node that vanished had written is paid for, though it can no longer confirm it."
)

_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1340px;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fafafa}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}"
    "table{border-collapse:collapse;font-size:13px;background:#fff}td,th{padding:4px 10px;"
    "border:1px solid #ddd;text-align:left;vertical-align:top}.plots{display:grid;gap:16px;"
    "grid-template-columns:repeat(auto-fit,minmax(min(560px,100%),1fr))}svg{width:100%;"
    "height:auto;border:1px solid #ddd}.bad{color:#b00020}"
)


def make_page(outcomes: Sequence[Outcome]) -> str:
    """The page; several outcomes are runs of one scenario under several policies."""
    first = outcomes[0]
    scenario = first.scenario
    parts = [f"<h1>{escape(scenario.title)}</h1>", _paragraph(scenario.description)]
    if first.world.made_up:
        absent = ", ".join(first.world.made_up)
        parts.append(f'<p class="bad">Made-up distributions stand in for: {escape(absent)}.</p>')
    if len(outcomes) > 1:
        reports = [make_report(one) for one in outcomes]
        parts += ["<h2>Policies side by side</h2>", _table(COMPARED, comparison(reports))]
        parts += ['<div class="plots">', *_latencies(outcomes), "</div>"]
    for one in outcomes:
        parts += [f"<h2>Policy: {escape(one.scenario.policy)}</h2>", '<div class="plots">']
        parts += [*([] if len(outcomes) > 1 else _latencies([one])), *_plots(one), "</div>"]
        parts += ["<h2>Numbers</h2>", _table(("", ""), rows(make_report(one)))]
    parts += ["<h2>What is real, and what is modelled</h2>"]
    parts += [_paragraph(text) for text in (REAL, MODELLED, BOOKS)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(scenario.title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>"
    )


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(columns: Iterable[str], cells: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _latencies(outcomes: Sequence[Outcome]) -> list[str]:
    """How long users wait, as cumulative shares."""
    drawn = []
    for title, name in (
        ("Time to the first token", "ttft_s"),
        ("Time to the last token", "finish_s"),
    ):
        series = [
            plots.Series(one.scenario.policy, plots.cdf(getattr(one.tally, name).tolist()))
            for one in outcomes
        ]
        values = [x for one in series for x, _ in one.points]
        across = plots.log_axis("seconds, as the user sees it", values)
        up = plots.Axis("share of answers", 0.0, 1.0)
        drawn.append(plots.lines(title, across, up, series))
    return drawn


def _plots(outcome: Outcome) -> list[str]:
    return [
        _load(outcome),
        _map(outcome),
        _failures(outcome.tally, outcome.scenario.hours),
        _presence(outcome),
    ]


def _load(outcome: Outcome) -> str:
    devices, tokens = outcome.world.devices, outcome.tally.node_tokens
    step = -(-len(devices) // POINTS_MAX)
    points = [
        (devices[n].decode_tps, tokens[n] / max(1.0, outcome.virtual_s))
        for n in range(0, len(devices), step)
    ]
    which = f", every {step}th" if step > 1 else ""
    return plots.dots(
        f"Load by node{which}",
        plots.log_axis("tokens a second that it writes alone", [x for x, _ in points]),
        plots.axis("tokens a second that it served", [y for _, y in points]),
        points,
    )


def _map(outcome: Outcome) -> str:
    world, tally = outcome.world, outcome.tally
    sizes = [0.0] * len(world.cities)
    for device in world.devices:
        sizes[device.city] += 1
    shades = [
        tally.city_ttft_s[n] / tally.city_answers[n] if tally.city_answers[n] else 0.0
        for n in range(len(world.cities))
    ]
    return plots.world_map(
        "Cities by their round trips: size is nodes, colour the mean first token of its users",
        embed(np.array(world.rtt_s)),
        sizes,
        shades,
        "near is near in milliseconds",
    )


def embed(rtt_s: Floats) -> list[plots.Point]:
    """Places in a plane whose distances are near the round trips (Torgerson, 1952)."""
    number = len(rtt_s)
    if number < 3:
        return [(float(n), 0.0) for n in range(number)]
    centring = np.eye(number) - 1 / number
    gram = -0.5 * centring @ (rtt_s**2) @ centring
    values, vectors = np.linalg.eigh(gram)
    places = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
    # An eigenvector's sign is anybody's choice: the first city lies left of and above the middle.
    places *= np.where(places[0] > 0, -1, 1)
    return [(float(x), float(y)) for y, x in places]


def _failures(tally: Tally, hours: float) -> str:
    kinds = sorted(
        {what for what, _ in tally.minutes} - NO_FAILURES,
        key=lambda what: (-sum(n for (w, _), n in tally.minutes.items() if w == what), what),
    )[:LINES_MAX]
    last = max([int(hours * 60), *(minute for _, minute in tally.minutes)])
    series = [
        plots.Series(what, [(float(m), float(tally.minutes[what, m])) for m in range(last + 1)])
        for what in kinds
    ]
    highest = [y for one in series for _, y in one.points]
    return plots.lines(
        "Failures over time",
        plots.Axis("minute", 0.0, float(max(1, last))),
        plots.axis("a minute", highest),
        series,
    )


def _presence(outcome: Outcome) -> str:
    points = [(at_s / 60, float(number)) for at_s, number in outcome.tally.up]
    return plots.lines(
        "Nodes that are there",
        plots.Axis("minute", 0.0, max(1.0, points[-1][0])),
        plots.axis("nodes", [y for _, y in points]),
        [plots.Series("up", points)],
    )
