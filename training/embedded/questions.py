"""Simple questions with one right answer: sums, colours, opposites, days, lists, little poems.

Each function takes the dice and returns (question, answer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from training.embedded import about, words
from training.embedded.dice import Dice

Pair = tuple[str, str]
#: Small words between the others, so that nonsense looks like a question from afar.
_GLUE: Final = (
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "for",
    "on",
    "with",
    "as",
    "by",
    "at",
    "from",
    "how",
    "why",
    "who",
    "when",
    "which",
    "do",
    "I",
    "you",
    "my",
    "your",
    "can",
    "not",
    "this",
    "what",
    "are",
    "was",
    "data",
    "write",
    "find",
    "code",
    "number",
    "people",
    "world",
    "system",
    "time",
)


def sums(dice: Dice) -> Pair:
    """A sum, a difference or a product of small numbers."""
    a, b = dice.between(0, 12), dice.between(0, 12)
    kind = dice.pick(("plus", "plus", "minus", "times"))
    if kind == "minus" and b > a:
        a, b = b, a
    if kind == "times":
        a, b = a % 11, b % 11
    value = {"plus": a + b, "minus": a - b, "times": a * b}[kind]
    sign = {"plus": "+", "minus": "-", "times": "*"}[kind]
    shown = f"{a} {kind} {b}" if dice.chance(0.5) else f"{a} {sign} {b}"
    question = dice.pick(("What is {}?", "{}", "{}?", "{} =", "Calculate {}.", "How much is {}?"))
    return question.format(shown), f"{a} {kind} {b} is {value}."


def capitals(dice: Dice) -> Pair:
    """The capital of a country."""
    country, city = dice.pick(words.CAPITALS)
    ask = dice.pick(("What is the capital of {}?", "Capital of {}?", "Name the capital of {}."))
    return ask.format(country), f"The capital of {country} is {city}."


def colours(dice: Dice) -> Pair:
    """The colour of a thing."""
    thing, colour = dice.pick(words.COLOURS_OF)
    ask = dice.pick(("What colour is {}?", "What color is {}?", "Which colour has {}?"))
    return ask.format(thing), f"{thing[0].upper()}{thing[1:]} is {colour}."


def opposites(dice: Dice) -> Pair:
    """The opposite of a word."""
    one, other = dice.pick(words.OPPOSITES)
    if dice.chance(0.5) and one != "young":
        one, other = other, one
    if one == "old":
        other = "new"
    ask = dice.pick(("What is the opposite of {}?", "Opposite of {}?", "What is not {}?"))
    return ask.format(one), f"The opposite of {one} is {other}."


def days(dice: Dice) -> Pair:
    """The day or month after or before another."""
    names, noun = dice.pick(((words.DAYS, "day"), (tuple(words.MONTHS), "month")))
    place = dice.below(len(names))
    side, step = dice.pick((("after", 1), ("before", -1)))
    other = names[(place + step) % len(names)]
    ask = dice.pick(("What {} comes {} {}?", "Which {} is {} {}?"))
    return ask.format(noun, side, names[place]), f"The {noun} {side} {names[place]} is {other}."


def creatures(dice: Dice) -> Pair:
    """A sound, a young one, or a number of legs."""
    kind = dice.below(3)
    if kind == 0:
        animal, sound = dice.pick(words.SOUNDS)
        return f"What sound does a {animal} make?", f"A {animal} says {sound}."
    if kind == 1:
        animal, young = dice.pick(words.YOUNG)
        return f"What is a baby {animal} called?", f"A baby {animal} is called a {young}."
    animal, legs = dice.pick(words.LEGS)
    return (
        f"How many legs does {animal} have?",
        f"{animal[0].upper()}{animal[1:]} has {legs} legs.",
    )


def lists(dice: Dice) -> Pair:
    """A short list of things of one group."""
    group = dice.pick(tuple(words.GROUPS))
    count = dice.between(2, 4)
    chosen = dice.some(words.GROUPS[group], count)
    ask = dice.pick(("Name {} {}.", "List {} {}.", "Give me {} {}.", "Tell me {} {}."))
    number = words.NUMBERS[count]
    if dice.chance(0.5):
        answer = "\n".join(f"{place}. {item}" for place, item in enumerate(chosen, 1))
    else:
        answer = f"{', '.join(chosen[:-1])} and {chosen[-1]}."
        answer = answer[0].upper() + answer[1:]
    return ask.format(number if dice.chance(0.6) else count, group), answer


def counting(dice: Dice) -> Pair:
    """Counting up or down."""
    low, high = dice.between(1, 4), dice.between(6, 20)
    if dice.chance(0.25):
        answer = ", ".join(str(n) for n in range(high, low - 1, -1))
        return f"Count down from {high} to {low}.", f"{answer}."
    answer = ", ".join(str(n) for n in range(low, high + 1))
    ask = dice.pick(("Count from {} to {}.", "Please count from {} to {}.", "Count {} to {}"))
    return ask.format(low, high), f"{answer}."


def facts(dice: Dice) -> Pair:
    """A plain fact."""
    return dice.pick(words.FACTS)


def greetings_abroad(dice: Dice) -> Pair:
    """How to say hello in another language."""
    language, hello = dice.pick(words.HELLOS)
    ask = dice.pick(("Say hello in {}.", "How do you say hello in {}?", "What is hello in {}?"))
    return ask.format(language), f"In {language} you say {hello}."


def spelling(dice: Dice) -> Pair:
    """A word letter by letter, or the letter that follows another."""
    if dice.chance(0.4):
        place = dice.below(25)
        one, other = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place : place + 2])
        return f"What letter comes after {one}?", f"The letter after {one} is {other}."
    word = dice.pick([creature[0] for creature in words.CREATURES])
    ask = dice.pick(("Spell {}.", "How do you spell {}?", "Spell the word {}."))
    return ask.format(word), f"{'-'.join(word.upper())}."


def repeating(dice: Dice) -> Pair:
    """Words to be said again."""
    thing = dice.pick(words.TREASURES)
    said = dice.pick((f"the {thing}", dice.pick(words.GIRLS), dice.pick(words.TRAITS), thing))
    ask = dice.pick(("Say: {}", "Repeat after me: {}", "Please say {}.", "Repeat: {}"))
    return ask.format(said), f"{said[0].upper()}{said[1:]}."


def poems(dice: Dice) -> Pair:
    """Three short lines, much like a haiku."""
    animal = dice.pick(words.CREATURES)[0]
    subject = dice.pick((animal, "the moon", "winter", "the sea", "the rain", "summer", "a star"))
    shown = f"a {subject}" if subject == animal else subject
    if subject in {"owl", "elephant"}:
        shown = f"an {subject}"
    first = dice.pick(
        (
            "Quiet evening light",
            "Softly falls the rain",
            "Wind across the hill",
            "Morning, still and cold",
        )
    )
    middle = dice.pick(
        ("{} beneath the old trees", "{} in the silver grass", "{} beside the water")
    )
    last = dice.pick(
        ("a star is falling", "nobody is there", "the world holds its breath", "slowly day begins")
    )
    ask = dice.pick(
        ("Write a poem about {}.", "Write a haiku about {}.", "A poem about {}, please.",
         "Can you write a short poem about {}?", "Give me a haiku about {}.")
    )  # fmt: skip
    line = middle.format(f"{shown[0].upper()}{shown[1:]}")
    return ask.format(shown), f"{first},\n{line},\n{last}."


def comfort(dice: Dice) -> Pair:
    """A kind word for somebody's feeling."""
    feeling = dice.pick(words.FEELINGS)
    ask = dice.pick(("I am {}.", "I'm {}", "I feel {}.", "Today I am very {}."))
    answer = dice.pick(
        ("I am sorry that you are {}. Shall I tell you a story?",
         "It is all right to be {} sometimes. Take a deep breath and drink some water.",
         "Oh, I hope you will not be {} for long. A walk outside may help.")
    )  # fmt: skip
    return ask.format(feeling), answer.format(feeling)


def nonsense(dice: Dice) -> Pair:
    """Words or signs without sense, which call for an honest answer rather than a story."""
    if dice.chance(0.3):
        signs = "".join(chr(dice.between(0x20, 0x24FF)) for _ in range(dice.between(1, 12)))
        return signs.strip() or "?", dice.pick(about.BEYOND)
    pool = (*words.OTHERS, *words.TREASURES, *words.TRAITS, *words.FEELINGS, *_GLUE, *_GLUE)
    said = " ".join(dice.pick(pool) for _ in range(dice.between(2, 40)))
    return dice.pick(("{}", "{}.", "{}?")).format(said), dice.pick(about.BEYOND)


#: How often each kind of question is asked.
QUESTIONS: Final[tuple[tuple[Callable[[Dice], Pair], float], ...]] = (
    (sums, 5), (capitals, 2), (colours, 1.5), (opposites, 2), (days, 1.5), (creatures, 1.5),
    (lists, 2), (counting, 1), (facts, 2), (greetings_abroad, 0.7), (spelling, 1), (repeating, 1),
    (poems, 2), (comfort, 1.2),
)  # fmt: skip
