"""How many prompt tokens a step takes: as many as fit into the time that an answer may pause.

Every answer gets a token in every step, so a step's length is the pause between two tokens. A
longer step costs a prompt less, because its fixed part and the answers' rows are paid less often.
So a step is as long as a pause may be and no shorter: the rule of Sarathi-Serve (Agrawal et al.,
OSDI 2024), with this machine's speed learnt from the steps themselves. When many wait, answers
give way a little: a pause grows with the line, between two bounds. It knows no clock (seconds are
handed in), nor who is running.
"""

from __future__ import annotations

from typing import Final

#: The pause between two tokens of an answer while prompts are read, in seconds: text still flows.
PAUSE_S: Final = 0.5
#: The longest one, however many wait, and what a step takes while no answer waits for it: the
#: parent sees a pulse and a cancellation is heard in time.
PAUSE_MOST_S: Final = 1.0
#: An answer pauses for this share of the time that the whole line of prompts will take: whoever
#: waits ten seconds for a first token gains more by it than others lose.
_OF_THE_LINE: Final = 0.1
#: The first step's prompt tokens, before it is known how fast the machine is, and the least.
_FIRST_TOKENS: Final = 32
#: The most of any step: bounds its scratch memory, on machines that read so much in a pause.
_TOKENS_MAX: Final = 4096
#: Rows that the kernels multiply by at a time; a few more take nearly as long as so many again.
_TILE_ROWS: Final = 32
#: Below so many tiles they do not matter: such a step is long because of the weights.
_TILES_MIN: Final = 4
#: What a step counts after each new one: the last five or so decide, the long ones most.
_KEPT: Final = 0.8


class Pace:
    """Learns how long rows take, and says how many prompt tokens a step has room for."""

    def __init__(self, pause_s: float = PAUSE_S, most_s: float = PAUSE_MOST_S) -> None:
        """Know nothing of the machine yet; for the seconds see the constants."""
        self._pause_s = pause_s
        self._most_s = most_s
        self._rows = 0.0
        self._seconds = 0.0

    def prompt_tokens(self, answering: int, waiting: int) -> int:
        """What the next step may spend on prompts.

        Args:
            answering: rows of the step that belong to answers: a token each, and their drafts.
            waiting: prompt tokens of all who have no answer yet.
        """
        if not self._seconds:
            return _FIRST_TOKENS
        row_s = self._seconds / self._rows
        pause_s = self._most_s
        if answering:
            pause_s = min(max(_OF_THE_LINE * waiting * row_s, self._pause_s), self._most_s)
        # Short steps say little of a long one: it has no more rows than those learnt from.
        rows = min(int(pause_s / row_s), int(self._rows), _TOKENS_MAX)
        if rows >= _TILES_MIN * _TILE_ROWS:
            rows -= rows % _TILE_ROWS
        return max(rows - answering, _FIRST_TOKENS)

    def learn(self, rows: int, seconds: float) -> None:
        """A step of so many rows, most of them a prompt's, took ``seconds``, which is not 0."""
        self._rows = _KEPT * self._rows + rows
        self._seconds = _KEPT * self._seconds + seconds
