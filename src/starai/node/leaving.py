"""How a node leaves: what runs goes on elsewhere or ends here, what is owed is confirmed."""

from __future__ import annotations

import logging
from typing import Final

import anyio

from starai.core.logging import event
from starai.exchange.confirming import Confirmer
from starai.exchange.serving import Serving
from starai.protocol.tasks import RefusalCode

_LOG = logging.getLogger(__name__)

#: Streams that somebody else can take go within a second; those that nobody can have this long.
FINISH_S: Final = 20.0
#: Callers say what they accepted within this.
CLOSE_S: Final = 10.0
#: A registry that is there confirms within this. What it did not is in the outbox, and is sent
#: when the node is started again.
CONFIRM_S: Final = 20.0
LOOK_S: Final = 0.05
CONFIRM_AGAIN_S: Final = 0.5


async def leave(serving: Serving, confirmer: Confirmer) -> bool:
    """Wait until nothing runs and nothing is owed; whether that came about in time.

    The node drains already: its beats ask distributors to relieve it.
    """
    await _until_idle(serving, FINISH_S)
    serving.dismiss(RefusalCode.DRAINING)
    await _until_idle(serving, CLOSE_S)
    settled = False
    with anyio.move_on_after(CONFIRM_S):
        while not settled:
            settled = await confirmer.flush()
            await anyio.sleep(0 if settled else CONFIRM_AGAIN_S)
    event(_LOG, "node_left", running=serving.num_open, all_confirmed=settled)
    return settled and not serving.num_open


async def _until_idle(serving: Serving, within_s: float) -> None:
    for _ in range(int(within_s / LOOK_S)):
        if not serving.num_open:
            return
        await anyio.sleep(LOOK_S)
