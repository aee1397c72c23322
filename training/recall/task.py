"""Documents that hide key-value pairs among words, with questions at the end.

::

    BEGIN  g g g g  w w k3 c9 w w w k7 c2 v5 w ...   ASK k7 v5  ASK k3 v1 ...
           legend   the document                     questions, the answer behind each key

Two kinds. In a *plain* document the answer to k3 is what stands behind it. In a *coded* one it is
the translation of that by the legend, which only the opening tells, as a title or an instruction
tells how to read what follows; half of the pairs have their translation beside them, so that a
model learns to translate while it reads. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
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
KEY: Final = 4
VALUE: Final = KEY + KEYS
LEGEND: Final = VALUE + VALUES
WORD: Final = LEGEND + LEGENDS * LEGEND_TOKENS
VOCABULARY: Final = WORD + TOPICS * WORDS
IGNORED: Final = -100
#: The share of a coded document's pairs with their translation beside them.
TRANSLATED: Final = 0.5

Ids = NDArray[np.int64]

#: The legends themselves, the same in every document: row g translates value n to value [g, n].
TRANSLATION: Final = np.stack(
    [np.random.default_rng(1000 + legend).permutation(VALUES) for legend in range(LEGENDS)]
)


@dataclass(frozen=True)
class Document:
    """A context, and what may be asked about it.

    Attributes:
        ids: int64 [tokens].
        keys: int64 [pairs], as token ids.
        values: int64 [pairs], the answer to each key.
        hidden: bool [pairs], whether the answer must be found without being spelled out.
    """

    ids: Ids
    keys: Ids
    values: Ids
    hidden: NDArray[np.bool_]


def document(
    rng: np.random.Generator, length: int, pairs: int, *, coded: bool, translated: float = 0.0
) -> Document:
    """A document of exactly ``length`` tokens with ``pairs`` pairs at random places.

    Args:
        rng: decides everything.
        length: at least ``1 + LEGEND_TOKENS + 3 * pairs``.
        pairs: at most ``KEYS``.
        coded: whether answers are translations.
        translated: the share of pairs that are followed by their translation, if coded.
    """
    legend = int(rng.integers(LEGENDS))
    keys = KEY + rng.choice(KEYS, size=pairs, replace=False)
    written = rng.integers(VALUES, size=pairs)
    values = VALUE + (TRANSLATION[legend][written] if coded else written)
    shown = (rng.random(pairs) < translated) & coded
    opening = 1 + LEGEND_TOKENS
    sizes = 2 + shown
    # A pair is one unit among units: choosing units at random keeps pairs from overlapping.
    units = length - opening - int(sizes.sum()) + pairs
    before = np.concatenate([[0], np.cumsum(sizes - 1)[:-1]])
    places = np.sort(rng.choice(units, size=pairs, replace=False)) + before + opening
    ids = WORD + int(rng.integers(TOPICS)) * WORDS + rng.integers(WORDS, size=length)
    ids[0] = BEGIN
    ids[1:opening] = LEGEND + legend * LEGEND_TOKENS + rng.permutation(LEGEND_TOKENS)
    ids[places] = keys
    ids[places + 1] = VALUE + written
    ids[places[shown] + 2] = values[shown]
    return Document(ids.astype(np.int64), keys, values, ~shown)


def row(
    rng: np.random.Generator, length: int, pairs: int, questions: int, *, coded: bool
) -> tuple[Ids, Ids]:
    """A document with questions, and the targets: every next token.

    Returns:
        Inputs and targets, int64 [length + 3 * questions].
    """
    context = document(rng, length, pairs, coded=coded, translated=TRANSLATED)
    asked = rng.choice(pairs, size=questions, replace=questions > pairs)
    tail = np.stack(
        [np.full(questions, ASK), context.keys[asked], context.values[asked]], axis=1
    ).reshape(-1)
    ids = np.concatenate([context.ids, tail])
    targets = np.append(ids[1:], IGNORED)
    return ids, targets
