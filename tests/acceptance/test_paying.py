"""Money end to end: `starai up` with a price, the openai client, and the books afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

#: USD for a million tokens, and so nano-USD for one.
IN, OUT = 1_000, 4_000
MODEL = "mock"


@pytest.fixture(scope="module")
def priced(start_up: Callable[..., Up]) -> Up:
    """A network of its own with a price, one customer and its key."""
    up = start_up("--model", "mock", "--price", "*=1/4")
    up.starai("customers", "create", "acme")
    up.acme_key = up.starai("keys", "create", "app", "--customer", "acme").strip()  # type: ignore[attr-defined]
    return up


def ask(up: Up, key: str, **fields: Any) -> Any:
    fields = {"max_tokens": 100, **fields}
    messages = [{"role": "user", "content": "Say something."}]
    with up.openai(api_key=key) as client:
        answer = client.chat.completions.create(model=MODEL, messages=messages, **fields)
        return list(answer) if "stream" in fields else answer


def cost_of(up: Up, key: str) -> int:
    """What an answer cost; 0: it was refused for want of money."""
    try:
        usage = ask(up, key).usage
    except openai.APIStatusError as error:
        if error.status_code == 402:
            return 0
        raise
    cost = int(usage.cost_nano_usd)
    assert cost == usage.prompt_tokens * IN + usage.completion_tokens * OUT
    return cost


def balance(up: Up) -> dict[str, int]:
    (one,) = json.loads(up.starai("balance", "acme", "--json"))["customers"]
    names = ("available", "held", "spent")
    return {name: int(one[f"{name}_nano_usd"]) for name in names}


def test_a_prepaid_customer_runs_dry_and_pays_in(priced: Up) -> None:
    """Refused without money, served with it, refused when it is gone, served after a deposit."""
    key = priced.acme_key  # type: ignore[attr-defined]
    with pytest.raises(openai.APIStatusError) as refused:
        ask(priced, key)
    assert refused.value.status_code == 402
    assert refused.value.code == "insufficient_balance"
    needed = int(refused.value.body["needed_nano_usd"])  # type: ignore[index, call-overload]
    assert refused.value.body["available_nano_usd"] == "0"  # type: ignore[index, call-overload]
    priced.starai("customers", "deposit", "acme", f"{3 * needed / 1e9:.9f}", "--note", "invoice 1")
    cost = answered = 0
    while usage := cost_of(priced, key):
        cost += usage
        answered += 1
    assert answered >= 1
    assert cost <= 3 * needed
    priced.starai("customers", "deposit", "acme", "1")
    *_, last = ask(priced, key, stream=True, stream_options={"include_usage": True})
    cost += int(last.usage.cost_nano_usd)
    limit = time.monotonic() + 30
    while (now := balance(priced))["spent"] < cost and time.monotonic() < limit:
        time.sleep(0.3)
    assert now["spent"] == cost
    assert sum(now.values()) == 3 * needed + 10**9


def test_the_supplier_sees_where_the_money_is(priced: Up) -> None:
    """Nine tenths of what was spent are pending at the node, and each task says why."""
    spent = balance(priced)["spent"]
    (node,) = json.loads(priced.starai("earnings", "--json"))["nodes"]
    assert 0 < int(node["pending_nano_usd"]) <= spent * 9 // 10
    assert (node["payable_nano_usd"], node["paid_nano_usd"]) == ("0", "0")
    task = json.loads(priced.starai("tasks", "--json"))["tasks"][0]
    (record,) = json.loads(priced.starai("earnings", "--why", task["task_id"], "--json"))["records"]
    assert record["stage"] == "pending"
    assert int(record["charge_nano_usd"]) * 9 // 10 == int(record["node_share_nano_usd"])
    address = "0x52908400098527886E0F7030069857D2E4169EE7"
    assert address.lower() in priced.starai("node", "payout", address, "--name", "node-1")
    own = json.loads(priced.starai("earnings", "node-1", "--json"))["nodes"]
    assert own[0]["payout_address"] == address.lower()
    assert "pending" in priced.starai("earnings")
    assert "acme" in priced.starai("customers", "list")
    assert "90 %" in priced.starai("prices", "list")


def test_a_budget_ends_a_key(priced: Up) -> None:
    """A key that has spent its budget is refused whatever its customer has; more lets it go on."""
    key = priced.starai(
        "keys", "create", "small", "--customer", "acme", "--budget", "0.000001"
    ).strip()
    with pytest.raises(openai.APIStatusError) as refused:
        ask(priced, key)
    assert refused.value.status_code == 402
    assert "budget" in refused.value.message
    listed = json.loads(priced.starai("keys", "list", "--json"))["keys"]
    key_id = next(one["key_id"] for one in listed if one["name"] == "small")
    priced.starai("keys", "budget", key_id, "0.10")
    assert ask(priced, key).choices
    assert json.loads(priced.starai("ledger", "check", "--json"))["problems"] == []
