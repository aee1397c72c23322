"""What settling costs, in gas: roots and claims beside direct transfers and batch pushes.

Every number is measured here, on py-evm and, where its program is found (PATH or STARAI_ANVIL), on
anvil. The daily totals are arithmetic on them. Needs starai[chain]; see README.md in this folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.unit.settlement.labs import (
    DAY_S,
    NODE,
    RELAYER,
    EmbeddedLab,
    Lab,
    Tree,
    anvil_lab,
    artefact,
    find_anvil,
)

from starai.settlement.rollup.ground import address_of, checksummed

OUT = Path(__file__).resolve().parents[1] / "results" / "gas_2-cores-x86_64_2026-11-21.md"
USD = 10**6
BATCH = 50
PAYEES = [address_of(NODE), *(n.to_bytes(20, "big") for n in range(300, 300 + BATCH))]
SIZES = (1_000, 100_000)


def settled(lab: Lab, size: int) -> dict[str, int]:
    """Posts and claims with a tree of ``size`` leaves: the first, and the steady state."""
    found = {}
    vault = lab.staged.vault.functions
    for number in (1, 2, 3):
        tree = Tree(number, dict.fromkeys(PAYEES, number * USD), padding=size - len(PAYEES))
        post = lab.post(tree)["gasUsed"]
        lab.travel(DAY_S)
        own, *others = (tree.claim(at) for at in PAYEES)
        alone = vault.claim(checksummed(own.account), own.units, list(own.proof))
        claim = lab.send(NODE, alone)["gasUsed"]
        many = [(checksummed(one.account), one.units, list(one.proof)) for one in others]
        relayed = lab.send(RELAYER, vault.claim_many(many))["gasUsed"] // BATCH
        when = "first" if number == 1 else "steady"
        found |= {f"post {when}": post, f"claim {when}": claim, f"relayed {when}": relayed}
    return found


def pushed(lab: Lab) -> dict[str, int]:
    """Direct transfers and batch pushes of the same token: to new payees, and again."""
    found = {}
    token = lab.staged.token
    lab.send(NODE, token.functions.mint(checksummed(address_of(NODE)), 10**12))
    push = lab.staged.ground.deploy(NODE, artefact("push"), token.address)
    lab.send(NODE, token.functions.approve(push.address, 10**12))
    payees = [checksummed(n.to_bytes(20, "big")) for n in range(10_000, 10_500)]
    for when in ("first", "steady"):
        one = checksummed((9_999).to_bytes(20, "big"))
        sent = lab.send(NODE, token.functions.transfer(one, USD))
        found[f"transfer {when}"] = sent["gasUsed"]
        for count in (50, 500):
            batch = payees[:50] if count == 50 else payees
            if when == "first" and count == 500:  # more than one transaction may use
                lab.send(NODE, push.functions.push(payees[50:275], [USD] * 225))
                lab.send(NODE, push.functions.push(payees[275:], [USD] * 225))
                continue
            sent = lab.send(NODE, push.functions.push(batch, [USD] * count))
            found[f"push {count} {when}"] = sent["gasUsed"] // count
    return found


def daily(costs: dict[str, int], push: dict[str, int], size: int) -> list[tuple[str, float, str]]:
    """Gas a day for ``size`` payees, by scheme."""
    post, claim, relayed = (costs[f"{name} steady"] for name in ("post", "claim", "relayed"))
    return [
        ("a transfer to each, every day", push["transfer steady"] * size, f"{size:,}"),
        ("push by 500, every day", push["push 500 steady"] * size, f"{max(1, size // 500):,}"),
        ("root only", post, "1"),
        ("root, each claims once in 30 days", post + claim * size / 30, f"1 + {size // 30:,}"),
        (
            "root, relayed by 50 once in 30 days",
            post + relayed * size / 30,
            f"1 + {max(1, size // 1500):,}",
        ),
        ("root, each claims every day", post + claim * size, f"1 + {size:,}"),
    ]


def section(name: str, lab: Lab) -> list[str]:
    """One machine's tables."""
    lines = [f"## {name}", "", "| Action | " + " | ".join(f"{n:,} leaves" for n in SIZES) + " |"]
    lines.append("|---|" + "---:|" * len(SIZES))
    costs = {}
    for size in SIZES:
        with lab.undone():
            costs[size] = settled(lab, size)
    lines += [
        f"| {action} | " + " | ".join(f"{costs[n][action]:,}" for n in SIZES) + " |"
        for action in costs[SIZES[0]]
    ]
    with lab.undone():
        push = pushed(lab)
    lines += ["", "| Without a tree, a payee | gas |", "|---|---:|"]
    lines += [f"| {action} | {used:,} |" for action, used in push.items()]
    for size in SIZES:
        lines += ["", f"{size:,} payees:", "", "| Scheme | gas a day | transactions a day |"]
        lines.append("|---|---:|---:|")
        rows = daily(costs[size], push, size)
        lines += [f"| {n} | {gas:,.0f} | {count} |" for n, gas, count in rows]
        claim, relayed = costs[size]["claim steady"], costs[size]["relayed steady"]
        each = push["push 500 steady"]
        lines.append("")
        lines.append(
            f"A push of 500 costs {each:,} a payee and day, so claims are cheaper only if a payee"
            f" claims less often than once in {claim / each:.1f} days (itself) or"
            f" {relayed / each:.1f} days (relayed)."
        )
    return [*lines, ""]


def main() -> None:
    """Measure on each machine, and write the result."""
    lines = ["# Gas of settlement", ""]
    lines.append(
        f"`python benchmarks/ledger/gas.py`, load average {os.getloadavg()[0]:.1f}; gas does not"
        " depend on the machine. Token: the play token of the package, one balance slot a"
        " holder. `first` writes storage that was empty, `steady` is every later day. L2 data"
        " fees are not in it."
    )
    lines += ["", *section("py-evm", EmbeddedLab())]
    if find_anvil():
        with anvil_lab() as lab:
            lines += section("anvil", lab)
    else:
        lines.append("anvil was not found; its gas is not in this file.")
    OUT.write_text("\n".join(lines).rstrip() + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
