"""The compiled kernels as seen from Python: found, loaded and checked once, or absent for a reason.

torch is imported first on purpose: the library then shares its OpenMP runtime (both ask for the
same name). Two runtimes would keep two sets of spinning threads on the same cores.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, Final

import torch

from starai.core.errors import ConfigurationRefused
from starai.engines.native import build

#: Every pointer and every count travels as one of these two; see ``function``.
POINTER: Final = ctypes.c_void_p
COUNT: Final = ctypes.c_int64

_LOCK: Final = threading.Lock()


class _State:
    loaded: ctypes.CDLL | None = None
    reason: str = ""
    tried: bool = False


def load() -> ctypes.CDLL | None:
    """The library, compiled now if it never was on this machine; None when there is none here.

    Does its work once per process. `why_not` tells what stood in the way.
    """
    if not _State.tried:
        with _LOCK:
            if not _State.tried:
                _try()
    return _State.loaded


def why_not() -> str:
    """Why there is no library; empty when it is loaded."""
    load()
    return _State.reason


def threads() -> int:
    """How many threads torch would use, which is how many the kernels use."""
    return int(torch.get_num_threads())


def function(name: str, *kinds: Any, returns: Any = None) -> Callable[..., Any] | None:
    """A C function by its name, ready to be called with plain numbers; None without a library.

    Args:
        name: the symbol, ``starai_...``.
        kinds: ctypes of the arguments; addresses from ``Tensor.data_ptr()`` are POINTERs.
        returns: ctype of the result.
    """
    library = load()
    if library is None:
        return None
    found = getattr(library, name)
    found.argtypes = kinds
    found.restype = returns
    return found  # type: ignore[no-any-return]


def _try() -> None:
    try:
        _State.loaded = ctypes.CDLL(str(build.build()))
    except ConfigurationRefused as refused:
        _State.reason = refused.message
    except OSError as error:
        _State.reason = f"the compiled library does not load: {error}"
    _State.tried = True
