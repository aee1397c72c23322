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
from starai.engines.native import build, selftest

#: Every pointer and every count travels as one of these two; see ``function``.
POINTER: Final = ctypes.c_void_p
COUNT: Final = ctypes.c_int64

_LOCK: Final = threading.Lock()


class _State:
    loaded: ctypes.CDLL | None = None
    reason: str = ""
    tried: bool = False
    threads: int = 0


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
    """How many threads the kernels use: what was set, else as many as torch."""
    return _State.threads or int(torch.get_num_threads())


def set_threads(count: int) -> None:
    """Let the kernels use so many threads from now on; 0 is as many as torch."""
    _State.threads = count


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


def _opened() -> ctypes.CDLL:
    """The library; one that does not load (cut by a full disk, for example) is built again, once.

    Raises:
        ConfigurationRefused: it cannot be built.
        OSError: what was built just now does not load either.
    """
    path = build.build()
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        build.forget(path)
        return ctypes.CDLL(str(build.build()))


def _try() -> None:
    try:
        library = _opened()
        complaint = selftest.complaint(library)
    except ConfigurationRefused as refused:
        complaint = refused.message
    except (OSError, AttributeError) as error:
        complaint = f"the compiled library does not load: {error}"
    else:
        _State.loaded = None if complaint else library
    _State.reason = complaint
    _State.tried = True
