"""How often a service looks for garbage that only a search finds: objects in a circle.

Python searches whenever 700 containers more were made than freed. A service under load holds
thousands that are simply in use (a request's task, its messages, its rows), so it would search all
day and find nothing. Everything else is freed at once, as ever, by counting references.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Containers more than at the last search until the next: what a few thousand requests hold. If all
#: of them were garbage in circles, they would be some ten megabytes.
YOUNG_MAX: Final = 50_000
#: Young searches until one that looks at what survived some, and of those until one at everything.
MIDDLE_EVERY: Final = 20
OLD_EVERY: Final = 100


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside stays, as imports do: it is not searched, neither now nor later.

    Searching meanwhile costs a tenth of the command line's imports, and a fifth of an engine's.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_rarely() -> None:
    """From now on, in this process: search rarely, and never among what was imported so far."""
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, MIDDLE_EVERY, OLD_EVERY)
