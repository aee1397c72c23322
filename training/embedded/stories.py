"""Short simple stories from a grammar of heroes, plots and turns of phrase.

Knows nothing about chats: `chats` wraps a story in a question and an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from training.embedded import plots, words
from training.embedded.dice import Dice

_PRONOUNS: Final = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}
_SHE: Final = frozenset({"girl", "queen", "princess"})
_HE: Final = frozenset({"boy", "king"})
#: How many optional sentences each length adds to a plot of six beats.
_EXTRA: Final = {"short": (0, 0), "plain": (1, 3), "long": (4, 7)}


@dataclass(frozen=True)
class Story:
    """A story and what it is about, so that a question can ask for it."""

    text: str
    kind: str
    name: str
    place: str
    thing: str


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def tell(dice: Dice, length: str, kind: str | None = None) -> Story:
    """A new story of ``length`` "short", "plain" or "long", about a ``kind`` of hero if given."""
    world = _world(dice, kind)
    sentences = _beats(dice, length)
    text = " ".join(sentence.format_map(world) for sentence in sentences)
    return Story(text, world["kind"], world["name"], world["place"], world["thing"])


def _beats(dice: Dice, length: str) -> list[str]:
    """The sentences of a story with their slots still open, in order."""
    plot = list(dice.pick(plots.PLOTS))
    if length == "short" and dice.chance(0.5):
        del plot[1]  # the only beat that every plot can do without
    sentences = [dice.pick(beat) for beat in plot]
    extra = dice.between(*_EXTRA[length])
    details = dice.some(plots.DETAILS, min(3, (extra + 1) // 2))
    between = dice.some((*plots.WEATHER, *plots.TALK), extra - len(details))
    # The friend enters at the third or fourth beat at the latest, so talk comes after that.
    for sentence in between:
        low = 4 if sentence in plots.TALK else 1
        sentences.insert(dice.between(min(low, len(sentences)), len(sentences)), sentence)
    endings = dice.some(plots.ENDINGS, 2 if length == "long" else 1)
    return [dice.pick(plots.OPENINGS), *details, *sentences, *endings]


def _hero(dice: Dice, kind: str | None) -> tuple[str, str, str, str]:
    """The kind of hero with home, food and gift; a kind without its own borrows a creature's."""
    known = {hero[0]: hero for hero in (*words.CREATURES, *words.PEOPLE)}
    if kind is None:
        kind = dice.pick((*known, *words.OTHERS))
    return known.get(kind) or (kind, *dice.pick(words.CREATURES)[1:])


def _world(dice: Dice, kind: str | None) -> dict[str, str]:
    """Who and what the story's slots stand for."""
    creature, home, food, gift = _hero(dice, kind)
    fkind = dice.pick([other[0] for other in words.CREATURES if other[0] != creature])
    girl = creature in _SHE or (creature not in _HE and dice.chance(0.5))
    friend_girl = dice.chance(0.5)
    name = dice.pick(words.GIRLS if girl else words.BOYS)
    friends = words.GIRLS if friend_girl else words.BOYS
    place, place2 = dice.some(words.PLACES, 2)
    thing = dice.pick(words.TREASURES)
    world = {
        "name": name,
        "kind": creature,
        "trait": dice.pick(words.TRAITS),
        "home": home,
        "food": food,
        "gift": gift,
        "friend": dice.pick([friend for friend in friends if friend != name]),
        "fkind": fkind,
        "place": place,
        "place2": place2,
        "thing": thing,
        "a_thing": with_article(thing),
    }
    for prefix, is_girl in (("", girl), ("f", friend_girl)):
        he, him, his = _PRONOUNS["girl" if is_girl else "boy"]
        capital = prefix.upper()
        world |= {f"{prefix}he": he, f"{prefix}him": him, f"{prefix}his": his}
        world |= {f"{capital}He": he.capitalize(), f"{capital}His": his.capitalize()}
    return world
