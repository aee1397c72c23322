"""`starai settle`: closed days onto a chain, payouts to suppliers, deposits into the books."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import click

from starai.cli.options import AT_LEAST_ONE, NOT_NEGATIVE, Duration, home_option, json_option
from starai.cli.tables import show_json, show_table
from starai.core.clock import SystemClock
from starai.core.errors import NotFound, Unavailable
from starai.ledger.accounts import usd
from starai.local.asking import operator
from starai.local.home import Home
from starai.local.settling import (
    AskedSettlement,
    claims_of,
    connected,
    deployed,
    from_hex,
    in_a_thread,
    read_key,
    wait_a_moment,
)
from starai.settlement.leaves import NANO_PER_UNIT, LeafKind
from starai.settlement.relaying import LEAST_UNITS, due, relay
from starai.settlement.rollup.base import Chain
from starai.settlement.settler import CONFIRMATIONS, Progress, Settler, Stage
from starai.settlement.watching import Watcher

F = TypeVar("F", bound=Callable[..., Any])

#: How long to wait between two looks at a chain: a block of most rollups and of Ethereum passes.
LOOK_EVERY_S: Final = 15.0
#: Signs nothing; lets the chain be read without a key.
_READING: Final = (1).to_bytes(32, "big")
_UNIT: Final = 1_000_000


def _chain_options(command: F) -> F:
    for option in (
        click.option(
            "--vault",
            envvar="STARAI_VAULT",
            show_envvar=True,
            required=True,
            metavar="CHAIN_ID:0xADDRESS",
            help="The vault, as `starai settle deploy` printed it.",
        ),
        click.option(
            "--rpc",
            envvar="STARAI_RPC",
            show_envvar=True,
            required=True,
            metavar="URL",
            help="A node of the chain that you trust: JSON-RPC over HTTP.",
        ),
    ):
        command = option(command)
    return command


_key_option = click.option(
    "--key",
    "key_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="A file with the secret key that signs: 64 hexadecimal digits, readable by you alone.",
)
_confirmations_option = click.option(
    "--confirmations",
    type=NOT_NEGATIVE,
    default=CONFIRMATIONS,
    show_default=True,
    help="Blocks on top before something counts.",
)
_once_option = click.option("--once", is_flag=True, help="Look once, do what is due, and end.")


@click.group(invoke_without_command=True)
@click.option("--demo", is_flag=True, help="Show a whole day on this machine; nothing is kept.")
@click.pass_context
def settle(ctx: click.Context, demo: bool) -> None:
    """Turn closed days into money on a chain.

    Customers deposit a stablecoin in a vault, a contract. Once a day the network posts one number
    there: the root of a tree that says what each supplier has earned since the beginning. It costs
    the same for ten suppliers as for a million. After a delay, in which a guardian can take it
    back, each supplier claims its part, or somebody claims for it; the money goes to the supplier
    whoever asks.

    Begin with `starai settle --demo`: it makes a chain in memory, sells a day of tasks, and pays a
    supplier, within a minute and without a network.

    \b
    On a real chain, in this order:
      starai settle watch    deposits become balances, claims leave the books   (always running)
      starai settle post     puts each closed day on the chain, exactly once    (always running)
      starai settle claim    pays suppliers; anybody may run it
      starai settle spent    proves to the vault what a customer may take back
      starai settle status   how far all that is

    Three keys, each used for one thing: the poster's (post), the guardian's (kept elsewhere, it
    can only stop things), the owner's (kept offline). docs/howto/settle.md says how to deploy.
    """  # noqa: D301 - click's mark for lines that stay as they are
    if demo:
        module = importlib.import_module("starai.local.settlement_demo")
        module.tell(click.echo)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@settle.command()
@home_option
@json_option
@_chain_options
def status(home: Home, as_json: bool, rpc: str, vault: str) -> None:
    """How far the chain is, and what was signed for the next day.

    An epoch is a closed day. `active` is the newest that can be claimed: one is posted, waits out
    its delay, and becomes active.
    """
    chain = connected(rpc, vault, _READING)

    def look(books: AskedSettlement) -> dict[str, Any]:
        standing = chain.standing(chain.tip().number)
        if standing is None:
            raise Unavailable("there is no vault at this address: check --vault and --rpc")
        funds, cursor = chain.funds(), books.cursor()
        offers = books.attempts(standing.epoch + 1)
        return {
            "chain_id": chain.chain_id,
            "epoch": standing.epoch,
            "active_epoch": standing.active_epoch,
            "head": standing.head.hex(),
            "earned": str(standing.earned),
            "spent": str(standing.spent),
            "deposited": str(funds.deposited),
            "paid": str(funds.paid),
            "paused": ["", "posts", "claims", "posts, claims"][funds.paused],
            "booked_to_block": cursor.block if cursor else None,
            "owed_nano_usd": str(books.owed()),
            "next_is_closed": books.next_post(standing.epoch + 1) is not None,
            "offers": [
                {
                    "nonce": one.signed.nonce,
                    "tx_hash": one.signed.tx_hash.hex(),
                    "fee_wei": str(one.signed.fee.most),
                    "state": one.state.value,
                }
                for one in offers
            ],
        }

    report = anyio.run(_with_books, home, chain, lambda books: in_a_thread(partial(look, books)))
    if as_json:
        show_json(report)
        return
    for name in ("chain_id", "epoch", "active_epoch", "head", "paused", "booked_to_block"):
        click.echo(f"{name.replace('_', ' ')}: {report[name] or '-'}")
    for name in ("earned", "spent", "deposited", "paid"):
        click.echo(f"{name}: {int(report[name]) / _UNIT:,.6f}")
    if owed := int(report["owed_nano_usd"]):
        click.echo(
            f"ALARM: customers took {usd(owed)} out of the vault that they had spent. It is taken"
            " from what they pay in next; the vault may refuse roots until as much is deposited."
        )
    columns = ("nonce", "transaction", "fee (wei)", "state")
    offers = [tuple(one.values()) for one in report["offers"]]
    empty = "The next day is closed." if report["next_is_closed"] else "No day waits to be posted."
    show_table(f"Transactions for epoch {report['epoch'] + 1}", columns, offers, empty)


@settle.command()
@home_option
@_chain_options
@_key_option
@_confirmations_option
@_once_option
def post(home: Home, rpc: str, vault: str, key_file: Path, confirmations: int, once: bool) -> None:
    """Post every closed day, in order, exactly once.

    What is signed is kept by the registry before it is sent, so this may be stopped or killed at
    any moment and started again anywhere. A transaction that waits long is offered a higher fee
    with the same nonce; one that a reorganisation drops is sent again. What the contract would
    refuse is not sent: the reason is shown, and it is tried again.

    The key must be the vault's poster, have some gas, and be used for nothing else.
    """
    chain = connected(rpc, vault, read_key(key_file))

    async def run(books: AskedSettlement) -> None:
        settler = Settler(chain, books, SystemClock(), confirmations=confirmations)
        await _again_and_again(lambda: _posted(settler), once=once)

    anyio.run(_with_books, home, chain, run)


async def _posted(settler: Settler) -> str:
    progress: Progress = await in_a_thread(settler.step)
    said = {
        Stage.IDLE: f"epoch {progress.epoch} is on the chain; nothing waits",
        Stage.WAITING: f"epoch {progress.epoch} waits: the contract would say {progress.why!r}",
        Stage.SENT: f"epoch {progress.epoch} is sent {progress.why and f'({progress.why})'}",
        Stage.VETOED: f"epoch {progress.epoch} was vetoed: correct the books, close it again",
    }
    return said[progress.stage].strip()


@settle.command()
@home_option
@_chain_options
@_confirmations_option
@_once_option
@click.option(
    "--from-block",
    type=NOT_NEGATIVE,
    default=0,
    show_default=True,
    help="The block in which the vault was deployed; matters the first time only.",
)
def watch(
    home: Home, rpc: str, vault: str, confirmations: int, once: bool, from_block: int
) -> None:
    """Book what happens at the vault: deposits, claims, withdrawals, vetoes.

    A deposit becomes the balance of the customer with that address (see `starai customers`); an
    address that nobody knows becomes a customer. What is not deep enough under other blocks is not
    booked, because a chain may still take it back.
    """
    chain = connected(rpc, vault, _READING)

    async def run(books: AskedSettlement) -> None:
        watcher = Watcher(chain, books, from_block, confirmations=confirmations)

        async def look() -> str:
            left = await in_a_thread(watcher.step)
            while left:
                left = await in_a_thread(watcher.step)
            cursor = await in_a_thread(books.cursor)
            return f"booked up to block {cursor.block if cursor else '-'}"

        await _again_and_again(look, once=once)

    anyio.run(_with_books, home, chain, run)


@settle.command()
@click.option(
    "--rpc",
    envvar="STARAI_RPC",
    show_envvar=True,
    required=True,
    metavar="URL",
    help="A node of the chain that you trust: JSON-RPC over HTTP.",
)
@_key_option
@click.option("--token", required=True, metavar="ADDRESS", help="The stablecoin, of six decimals.")
@click.option("--poster", required=True, metavar="ADDRESS", help="Whose key posts, and no more.")
@click.option(
    "--guardian", required=True, metavar="ADDRESS", help="Whose key can only stop things."
)
@click.option(
    "--delay",
    "delay_ms",
    type=Duration(),
    default="12h",
    show_default=True,
    help="How long a root waits for a veto; less than a day.",
)
@click.option(
    "--max-daily",
    type=AT_LEAST_ONE,
    required=True,
    help="Dollars by which totals may grow in a day: what a thief of the poster key could add.",
)
def deploy(rpc: str, key_file: Path, *, delay_ms: int, max_daily: int, **addresses: str) -> None:
    """Put a vault on a chain, and print what names it.

    The key becomes the owner: it can replace the other two and start again what the guardian
    stopped. Keep it offline afterwards, or hand the vault to a multisignature wallet with the
    contract's transfer_ownership.
    """
    key = read_key(key_file)
    names = ("token", "poster", "guardian")
    roles = [from_hex(addresses[name], 20, "an address") for name in names]

    def run() -> str:
        return deployed(rpc, key, *roles, delay_s=delay_ms // 1000, max_daily=max_daily * _UNIT)

    click.echo(anyio.run(in_a_thread, run))


@settle.command()
@_chain_options
@_key_option
@click.argument("export", type=click.Path(file_okay=False, path_type=Path))
@click.argument("addresses", nargs=-1)
@click.option(
    "--least",
    type=NOT_NEGATIVE,
    default=LEAST_UNITS,
    show_default=True,
    help="Leave claims of fewer base units for later.",
)
def claim(
    rpc: str, vault: str, key_file: Path, export: Path, addresses: tuple[str, ...], least: int
) -> None:
    """Claim what ADDRESSES, or all, have earned and not had.

    EXPORT is a copy of the registry's export, which every supplier may have: the proofs are made
    from it here. Up to 50 claims share a transaction. Whose key signs pays the gas; the money goes
    to each address itself, or where it chose with the contract's set_payout.
    """
    chain = connected(rpc, vault, read_key(key_file))
    wanted = {from_hex(one, 20, "an address") for one in addresses}

    def run() -> None:
        claims = claims_of(export, chain)
        chosen = [one for one in claims if not wanted or one.account in wanted]
        paid = 0
        for sent in relay(chain, due(chain, chosen, least), wait_a_moment):
            paid += sent.claims
            outcome = "paid" if sent.receipt.ok else "refused"
            click.echo(f"{sent.claims} claims {outcome} by 0x{sent.tx_hash.hex()}")
        click.echo(f"{paid} of {len(chosen)} addresses had something to claim.")

    anyio.run(in_a_thread, run)


@settle.command()
@json_option
@_chain_options
@click.argument("export", type=click.Path(file_okay=False, path_type=Path))
@click.argument("address")
def spent(as_json: bool, rpc: str, vault: str, export: Path, address: str) -> None:
    """Show what ADDRESS has spent, and the proof with which it takes back the rest.

    EXPORT is a copy of the registry's export. The contract's `withdraw` asks for an amount, for
    what was spent in base units, and for the proof, in this order; it must have been asked for
    with `request_withdrawal` before. Every address that paid in is there, if it spent nothing too.
    """
    account = from_hex(address, 20, "an address")
    chain = connected(rpc, vault, _READING)
    found = [
        one
        for one in anyio.run(in_a_thread, partial(claims_of, export, chain, LeafKind.SPENT))
        if one.account == account
    ]
    if not found:
        raise NotFound(
            "this address is not in the day that is active: a deposit is, from the first day closed"
            " after `starai settle watch` has booked it"
        )
    proof = [f"0x{one.hex()}" for one in found[0].proof]
    if as_json:
        show_json({"spent_units": str(found[0].units), "proof": proof})
        return
    click.echo(f"spent: {usd(found[0].units * NANO_PER_UNIT)}")
    click.echo(f"withdraw(AMOUNT, {found[0].units}, [{', '.join(proof)}])")


async def _with_books(
    home: Home, chain: Chain, work: Callable[[AskedSettlement], Awaitable[Any]]
) -> Any:
    """Do ``work`` with the registry's books on this vault."""
    chain_id = await in_a_thread(lambda: chain.chain_id)
    async with operator(home) as asked:
        return await work(AskedSettlement(asked.ask, chain_id, chain.contract))


async def _again_and_again(look: Callable[[], Awaitable[str]], *, once: bool) -> None:
    """Look every few seconds, and say what changed; a chain that is silent is asked again."""
    last = ""
    while True:
        try:
            said = await look()
        except Unavailable as error:
            if once:
                raise
            said = error.message
        if said != last:
            click.echo(said)
            last = said
        if once:
            return
        await anyio.sleep(LOOK_EVERY_S)
