"""The library: what is known of today's common open models, without fetching any of them."""

from starai.models.library.base import Experts, LibraryModel, Shape
from starai.models.library.quantisations import (
    QUANTISATIONS,
    Quantisation,
    read_bytes,
    weight_bytes,
)
from starai.models.library.reading import find, library

__all__ = [
    "QUANTISATIONS",
    "Experts",
    "LibraryModel",
    "Quantisation",
    "Shape",
    "find",
    "library",
    "read_bytes",
    "weight_bytes",
]
