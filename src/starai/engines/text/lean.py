"""Imports transformers without what a server never uses: a quarter of an engine's start, measured.

transformers marks functions for torch's compiler, prepares for weights that are spread over
machines, and reads the files of all its models twice to know what is in them. The first imports
``torch._dynamo``, the second ``torch.distributed.tensor``: 0.6 s of processor time for what is
never called here; reading twice takes 0.3 s. Knows nothing about models.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_COMPILER: Final = "torch._dynamo"
#: What names of transformers' models begin with where the whole package lists them.
_PREFIX: Final = "models."


@contextmanager
def lean_imports() -> Iterator[None]:
    """Inside, what imports torch's compiler gets a stand-in, and no spreading is prepared for.

    Does nothing when the compiler was imported before. Afterwards it can be imported as ever, and
    whoever took something from the stand-in gets the real thing when it calls it.
    """
    import torch  # noqa: PLC0415 - heavy, and imported whole before anything is changed

    if _COMPILER in sys.modules:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        with _replaced(torch.distributed, "is_available", lambda: False):
            from transformers.utils import import_utils  # noqa: PLC0415 - heavy

            listing = _listed_once(import_utils.define_import_structure)
            with _replaced(import_utils, "define_import_structure", listing):
                yield
    finally:
        sys.meta_path.remove(finder)
        for name in [one for one, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]
        vars(torch).pop("_dynamo", None)


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    former = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, former)


def _listed_once(define: Callable[..., Any]) -> Callable[..., Any]:
    """As ``define`` lists a package's names, but without reading all models' files once more.

    The whole package has listed them when it was imported, under longer names.
    """

    def listed(path: str | Path, prefix: str | None = None) -> Any:
        folder = Path(path).parent
        if prefix is not None or folder.name != "models" or folder.parent.name != "transformers":
            return define(path, prefix)
        known = define(folder, prefix=_PREFIX[:-1])
        found = {
            needs: {n.removeprefix(_PREFIX): o for n, o in names.items() if n.startswith(_PREFIX)}
            for needs, names in known.items()
        }
        return {needs: names for needs, names in found.items() if names}

    return listed


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for the compiler and for everything in it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COMPILER and not fullname.startswith(_COMPILER + "."):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""


class _StandIn(ModuleType):
    """A module in which every name is a `_Later`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Later:
    """A mark on functions, with or without options, while it is inside; then the real thing."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __call__(self, *args: Any, **options: Any) -> Any:
        if args and callable(args[0]):
            return args[0]
        real = importlib.import_module(self._module)
        return self if isinstance(real, _StandIn) else getattr(real, self._name)(*args, **options)
