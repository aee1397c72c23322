"""The embedded model's corpus: an endless stream of chats and stories, a function of the seed.

Every word is generated here from this folder's grammar; nothing is copied from anywhere. Knows
nothing about tokens: a document is a list of turns, and a story outside a chat is one turn of the
role "text".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from training.embedded import about, questions, stories, words
from training.embedded.dice import Dice
from training.embedded.stories import with_article

#: What the corpus is made of, by documents.
MIXTURE: Final = (
    ("about", 0.30),
    ("question", 0.36),
    ("nonsense", 0.04),
    ("story", 0.25),
    ("text", 0.05),
)
#: A chat goes on after each answer with this chance.
GOES_ON: Final = 0.35
TURNS_MAX: Final = 5
_SYSTEM: Final = (
    "You are a helpful assistant.",
    "You are StarAI.",
    "You are a friendly assistant. Answer briefly.",
    "Answer in English.",
    "You tell stories to children.",
    "Be kind and brief.",
)
_STORY_ASKS: Final = {
    "short": (
        "Tell me a short story about {a}.", "A short story about {a}, please.",
        "Write a very short story about {a}.", "Tell me a short story.",
    ),
    "plain": (
        "Tell me a story.", "Tell me a story about {a}.", "Write a story about {a}.",
        "Tell a story about {a} named {name}.", "Write a story about {a} called {name}.",
        "I want a story about {a}.", "A story, please!", "Once upon a time", "Story about {a}",
        "Tell me a bedtime story.", "Do you know a story about {a}?", "Another story!",
        "Yes",
        "Yes, please!",
        "Tell me a story about {a} and {a_thing}.", "Write a fairy tale about {a}.",
        "Tell me a story about {a} at {place}.", "Make up a story.",
    ),
    "long": (
        "Tell me a long story.", "Tell me a long story about {a}.",
        "Write a long story about {a}.", "A long story about {a}, please.",
        "Tell me a very long story about {a}.", "Write a long fairy tale about {a}.",
        "Tell me a long bedtime story about {a} named {name}.",
        "Tell me a long, detailed story about {a}.", "Write a story of 200 words about {a}.",
    ),
}  # fmt: skip
_POLITE: Final = ("Please ", "Hey, ", "Hi! ", "Could you please ", "Can you ", "Now ", "Ok, ")


@dataclass(frozen=True)
class Turn:
    """One turn: ``role`` is "system", "user", "assistant" or "text" (a bare document)."""

    role: str
    content: str


Document = list[Turn]


def documents(seed: int) -> Iterator[Document]:
    """Documents without end; the same for the same seed.

    Args:
        seed: two seeds give streams that have almost nothing in common but short answers.
    """
    dice = Dice(seed)
    while True:
        kind = dice.weighted(MIXTURE)
        yield _text(dice) if kind == "text" else _chat(dice, kind)


def _text(dice: Dice) -> Document:
    """A story without a chat around it, as a raw completion is asked for."""
    length = dice.weighted((("short", 0.3), ("plain", 0.4), ("long", 0.3)))
    return [Turn("text", stories.tell(dice, length).text)]


def _chat(dice: Dice, kind: str) -> Document:
    """A chat that opens with ``kind`` and may go on with anything."""
    chat: Document = []
    if dice.chance(0.12):
        chat.append(Turn("system", dice.pick(_SYSTEM)))
    if dice.chance(0.05):
        chat += _named(dice)
    for _ in range(TURNS_MAX):
        question, answer = _exchange(dice, kind)
        chat += [Turn("user", question), Turn("assistant", answer)]
        if not dice.chance(GOES_ON):
            break
        kind = dice.weighted((("about", 0.4), ("question", 0.4), ("story", 0.2)))
    return chat


def _exchange(dice: Dice, kind: str) -> tuple[str, str]:
    """One question and its answer."""
    if kind == "story":
        return _story(dice)
    if kind == "about":
        asks, answers = dice.pick(about.ABOUT)
        return _vary(dice, dice.pick(asks)), dice.pick(answers)
    if kind == "nonsense":
        return questions.nonsense(dice)
    question, answer = dice.weighted(questions.QUESTIONS)(dice)
    return _vary(dice, question), answer


def _story(dice: Dice) -> tuple[str, str]:
    """A wish for a story, and the story."""
    length = dice.weighted((("short", 0.2), ("plain", 0.5), ("long", 0.3)))
    story = stories.tell(dice, length)
    ask = dice.pick(_STORY_ASKS[length]).format(
        a=with_article(story.kind),
        name=story.name,
        place=story.place,
        a_thing=with_article(story.thing),
    )
    return _vary(dice, ask), story.text


def _named(dice: Dice) -> Document:
    """A person tells their name and later asks for it."""
    name = dice.pick((*words.GIRLS, *words.BOYS))
    tell = dice.pick(("My name is {}.", "I am {}.", "Hi, I'm {}!", "Call me {}.")).format(name)
    greet = dice.pick(("Nice to meet you, {}!", "Hello, {}! How can I help?", "Hi {}!"))
    ask = dice.pick(("What is my name?", "Who am I?", "Do you remember my name?"))
    return [
        Turn("user", tell),
        Turn("assistant", greet.format(name)),
        Turn("user", _vary(dice, ask)),
        Turn("assistant", f"Your name is {name}."),
    ]


def _vary(dice: Dice, question: str) -> str:
    """The same question as different people type it."""
    starts_plainly = question.split(" ", maxsplit=1)[0] in {
        "Tell",
        "Write",
        "Name",
        "List",
        "Give",
        "Count",
    }
    if starts_plainly and dice.chance(0.25):
        question = dice.pick(_POLITE) + question[0].lower() + question[1:]
    if dice.chance(0.25):
        question = question.rstrip("?.!")
    if dice.chance(0.2):
        question = question.lower()
    return question
