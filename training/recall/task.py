"""Documents that hide key-value pairs among words, with questions at the end.

::

    BEGIN  o o o o  w w k3 v9 w w w k7 v2 w ...   ASK k7 v5  ASK k3 v1 ...
           opening  the document                  questions, the answer behind each key

Three kinds, by what the opening is for. In a *plain* document the answer to k3 is what stands
behind it, v9. In a *coded* one it is a translation of that, one of a few that are the same in every
document; the opening says which, as a title tells how to read what follows. In a *glossary* one the
opening is the translation itself, drawn afresh: each of its tokens means "v9 stands for v1". Knows
nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

PAD: Final = 0
BEGIN: Final = 1
ASK: Final = 2
#: The one token that an anchor of constant tokens repeats; it occurs in no document.
DULL: Final = 3
KEYS: Final = 64
VALUES: Final = 64
LEGENDS: Final = 4
LEGEND_TOKENS: Final = 4
TOPICS: Final = 8
WORDS: Final = 16
#: Values that occur in a glossary document. The square of it are its entries: one token each, so
#: that the first layer can look a value up, which two layers have to do before anybody asks.
TERMS: Final = 16
KEY: Final = 4
VALUE: Final = KEY + KEYS
LEGEND: Final = VALUE + VALUES
WORD: Final = LEGEND + LEGENDS * LEGEND_TOKENS
ENTRY: Final = WORD + TOPICS * WORDS
IGNORED: Final = -100
#: The share of a coded document's pairs with their translation beside them, from which a model
#: learns to translate while it reads.
TRANSLATED: Final = 0.5

Ids = NDArray[np.int64]

#: The legends themselves, the same in every document: row g translates value n to value [g, n].
TRANSLATION: Final = np.stack(
    [np.random.default_rng(1000 + legend).permutation(VALUES) for legend in range(LEGENDS)]
)


class Kind(StrEnum):
    """What the answers of a document need besides what stands behind their keys."""

    PLAIN = "plain"
    CODED = "coded"
    GLOSSARY = "glossary"

    @property
    def opening(self) -> int:
        """Tokens before the first word, `BEGIN` included."""
        return 1 + (TERMS if self is Kind.GLOSSARY else LEGEND_TOKENS)

    @property
    def vocabulary(self) -> int:
        """Tokens that a model of this kind must know."""
        return ENTRY + (TERMS * TERMS if self is Kind.GLOSSARY else 0)

    @property
    def choices(self) -> int:
        """Among how many values the answer is."""
        return TERMS if self is Kind.GLOSSARY else VALUES


@dataclass(frozen=True)
class Document:
    """A context, and what may be asked about it.

    Attributes:
        ids: int64 [tokens].
        keys: int64 [pairs], as token ids.
        values: int64 [pairs], the answer to each key.
        places: int64 [pairs], where each key stands.
        hidden: bool [pairs], whether the answer must be found without being spelled out.
    """

    ids: Ids
    keys: Ids
    values: Ids
    places: Ids
    hidden: NDArray[np.bool_]


def document(
    rng: np.random.Generator, length: int, pairs: int, kind: Kind, translated: float = 0.0
) -> Document:
    """A document of exactly ``length`` tokens with ``pairs`` pairs at random places.

    Args:
        rng: decides everything.
        length: at least ``kind.opening + 3 * pairs``.
        pairs: at most ``KEYS``.
        kind: what the opening is for.
        translated: the share of pairs that are followed by their translation, if coded.
    """
    tokens, meaning = _opening(rng, kind)
    keys = KEY + rng.choice(KEYS, size=pairs, replace=False)
    written = rng.integers(len(meaning), size=pairs)
    values = VALUE + meaning[written]
    shown = (rng.random(pairs) < translated) & (kind is Kind.CODED)
    sizes = 2 + shown
    # A pair is one unit among units: choosing units at random keeps pairs from overlapping.
    units = length - kind.opening - int(sizes.sum()) + pairs
    before = np.concatenate([[0], np.cumsum(sizes - 1)[:-1]]) + kind.opening
    places = np.sort(rng.choice(units, size=pairs, replace=False)) + before
    ids = WORD + int(rng.integers(TOPICS)) * WORDS + rng.integers(WORDS, size=length)
    ids[0] = BEGIN
    ids[1 : kind.opening] = rng.permutation(tokens)
    ids[places] = keys
    ids[places + 1] = VALUE + written
    ids[places[shown] + 2] = values[shown]
    return Document(ids.astype(np.int64), keys, values, places, ~shown)


def _opening(rng: np.random.Generator, kind: Kind) -> tuple[Ids, Ids]:
    """The tokens behind `BEGIN`, in any order, and what each written value means by them."""
    if kind is Kind.GLOSSARY:
        meaning = rng.permutation(TERMS)
        return ENTRY + np.arange(TERMS) * TERMS + meaning, meaning
    legend = int(rng.integers(LEGENDS))
    tokens = LEGEND + legend * LEGEND_TOKENS + np.arange(LEGEND_TOKENS)
    return tokens, TRANSLATION[legend] if kind is Kind.CODED else np.arange(VALUES)


def row(
    rng: np.random.Generator, length: int, pairs: int, questions: int, kind: Kind
) -> tuple[Ids, Ids, Ids]:
    """A document with questions, and the targets.

    Returns:
        Int64 [length + 3 * questions] each: inputs; every next token; and what a reader could know
        at each token already, that is the answers where what stands behind their keys stands.
    """
    context = document(rng, length, pairs, kind, TRANSLATED)
    asked = rng.choice(pairs, size=questions, replace=questions > pairs)
    tail = np.stack(
        [np.full(questions, ASK), context.keys[asked], context.values[asked]], axis=1
    ).reshape(-1)
    ids = np.concatenate([context.ids, tail])
    known = np.full(len(ids), IGNORED)
    known[context.places + 1] = context.values
    return ids, np.append(ids[1:], IGNORED), known
