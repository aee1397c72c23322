"""Reads the library's data file, strictly: a field that is misspelt is an error, not a default."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

import msgspec

from starai.core.errors import ModelNotFound
from starai.models.library.base import LibraryModel


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[LibraryModel, ...]


@cache
def library() -> tuple[LibraryModel, ...]:
    """All models, the smallest first."""
    text = resources.files(__package__).joinpath("models.toml").read_text("utf-8")
    models = msgspec.convert(tomllib.loads(text), _File).model
    return tuple(sorted(models, key=lambda model: (model.parameters, model.name)))


def find(name: str) -> LibraryModel:
    """A model by its name, or by ``ORG/NAME`` of the hub.

    Raises:
        ModelNotFound: the library does not know it.
    """
    for model in library():
        if name in (model.name, model.hub):
            return model
    raise ModelNotFound(f"the library has no model {name!r}: `starai models library` lists all")
