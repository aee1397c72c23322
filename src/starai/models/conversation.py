"""What a conversation is before it is a prompt: messages with one of a closed set of roles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starai.core.errors import InvalidRequest
from starai.models.tools import Message

#: The roles of OpenAI's messages. A closed set: templates paste roles between control tokens.
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what no template may see.

    Raises:
        InvalidRequest: no messages, or a role outside `ROLES`.
    """
    if not messages:
        raise InvalidRequest("a conversation needs at least one message", param="messages")
    for number, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise InvalidRequest(
                f"message {number} needs a role out of {', '.join(sorted(ROLES))}",
                param=f"messages[{number}].role",
            )
