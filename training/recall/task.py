"""Documents that hide key-value pairs among words of a topic, with questions at the end.

::

    BEGIN  t t t t  w w k3 v9 w w w k7 v2 w ...   ASK k7 v2  ASK k3 v9 ...
           topic    the document                  questions, the answer behind each key

The topic words open the document and decide which words fill it, as a title does; a model of such
text therefore reads its beginning. Pairs stand anywhere and keys occur once. Knows nothing about
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PAD: Final = 0
BEGIN: Final = 1
ASK: Final = 2
#: The one token that an anchor of constant tokens repeats; an ordinary word of no topic.
DULL: Final = 3
_FIRST: Final = 4
KEYS: Final = 64
VALUES: Final = 64
TOPICS: Final = 8
WORDS: Final = 16
TOPIC_TOKENS: Final = 4
KEY: Final = _FIRST
VALUE: Final = KEY + KEYS
WORD: Final = VALUE + VALUES
VOCABULARY: Final = WORD + TOPICS * WORDS
IGNORED: Final = -100

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """A context, and what may be asked about it.

    Attributes:
        ids: int64 [tokens].
        keys: int64 [pairs], as token ids.
        values: int64 [pairs], the value of each key.
    """

    ids: Ids
    keys: Ids
    values: Ids


def document(rng: np.random.Generator, length: int, pairs: int) -> Document:
    """A document of exactly ``length`` tokens with ``pairs`` pairs at random places.

    Args:
        rng: decides everything.
        length: at least ``1 + TOPIC_TOKENS + 2 * pairs``.
        pairs: at most ``KEYS``.
    """
    topic = int(rng.integers(TOPICS))
    words = WORD + topic * WORDS + rng.integers(WORDS, size=length)
    keys = KEY + rng.choice(KEYS, size=pairs, replace=False)
    values = VALUE + rng.integers(VALUES, size=pairs)
    opening = 1 + TOPIC_TOKENS
    # A pair is one unit among units: choosing units at random keeps pairs from overlapping.
    units = length - opening - pairs
    places = np.sort(rng.choice(units, size=pairs, replace=False)) + np.arange(pairs) + opening
    ids = words.astype(np.int64)
    ids[0] = BEGIN
    ids[places] = keys
    ids[places + 1] = values
    return Document(ids, keys, values)


def row(rng: np.random.Generator, length: int, pairs: int, questions: int) -> tuple[Ids, Ids]:
    """A document with questions, and the targets: every next token but the unforeseeable ones.

    Returns:
        Inputs and targets, int64 [length + 3 * questions].
    """
    context = document(rng, length, pairs)
    asked = rng.choice(pairs, size=questions, replace=questions > pairs)
    tail = np.stack(
        [np.full(questions, ASK), context.keys[asked], context.values[asked]], axis=1
    ).reshape(-1)
    ids = np.concatenate([context.ids, tail])
    targets = np.append(ids[1:], IGNORED)
    return ids, targets
