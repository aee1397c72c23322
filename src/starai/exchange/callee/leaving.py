"""How a callee leaves: what runs goes on elsewhere or ends here, what is owed is confirmed."""

from __future__ import annotations

import logging
from typing import Final

import anyio
import msgspec

from starai.core.logging import event
from starai.exchange.callee.serving import Serving
from starai.exchange.recording.confirming import Confirmer
from starai.protocol.tasks import RefusalCode

_LOG = logging.getLogger(__name__)


class Patience(msgspec.Struct, frozen=True):
    """How long to wait, in seconds.

    Attributes:
        finish_s: for streams that nobody else can take; what others can goes within a second.
        close_s: for callers to say what they accepted.
        confirm_s: for the registry. What it did not confirm is in the outbox, and is sent when
            the service is started again.
    """

    finish_s: float
    close_s: float
    confirm_s: float

    @property
    def sum_s(self) -> float:
        """In all."""
        return self.finish_s + self.close_s + self.confirm_s


#: Of one who was ordered to leave for good, and of one whose process is told to stop.
ORDERED: Final = Patience(20.0, 10.0, 20.0)
STOPPED: Final = Patience(5.0, 2.0, 2.0)
LOOK_S: Final = 0.05
CONFIRM_AGAIN_S: Final = 0.5


async def leave(serving: Serving, confirmer: Confirmer, patience: Patience = ORDERED) -> bool:
    """Wait until nothing runs and nothing is owed; whether that came about in time.

    Who leaves drains already: its beats ask callers to relieve it.
    """
    await _until_idle(serving, patience.finish_s)
    serving.dismiss(RefusalCode.DRAINING)
    await _until_idle(serving, patience.close_s)
    settled = False
    with anyio.move_on_after(patience.confirm_s):
        while not settled:
            settled = await confirmer.flush()
            await anyio.sleep(0 if settled else CONFIRM_AGAIN_S)
    event(_LOG, "left", running=serving.num_open, all_confirmed=settled)
    return settled and not serving.num_open


async def _until_idle(serving: Serving, within_s: float) -> None:
    for _ in range(int(within_s / LOOK_S)):
        if not serving.num_open:
            return
        await anyio.sleep(LOOK_S)
