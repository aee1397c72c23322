"""A whole network on this machine: `starai up`'s processes, or all of it inside one program."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starai.local.network import Network

__all__ = ["Network"]


def __getattr__(name: str) -> Any:
    """`Network` is imported when it is used: it brings every service with it."""
    if name != "Network":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from starai.local.network import Network  # noqa: PLC0415 - late on purpose

    return Network
