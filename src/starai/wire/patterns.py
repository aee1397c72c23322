"""NATS subjects and wildcard patterns: which are well formed, which match. Knows no network."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starai.core.errors import MalformedFrame

_SUBJECT = re.compile(r"[^\s.*>]+(?:\.[^\s.*>]+)*").fullmatch
_PATTERN = re.compile(r"(?:\*|[^\s.*>]+)(?:\.(?:\*|[^\s.*>]+))*(?:\.>)?|>").fullmatch


def check_subject(subject: str) -> None:
    """Refuse what cannot be published on; this also keeps line breaks off the wire.

    Raises:
        MalformedFrame: it is empty, has an empty token, a blank or a wildcard.
    """
    if not _SUBJECT(subject):
        raise MalformedFrame("not a subject to publish on")


def check_pattern(pattern: str) -> None:
    """Refuse what cannot be subscribed to.

    Raises:
        MalformedFrame: it is empty, has an empty token, a blank or a misplaced wildcard.
    """
    if not _PATTERN(pattern):
        raise MalformedFrame("not a subject or pattern to subscribe to")


def matches(pattern: str, subject: str) -> bool:
    """Whether ``pattern`` covers ``subject``: ``*`` is one token, a last ``>`` one or more.

    ``subject`` may be a pattern itself: then whether all that it covers is covered.
    """
    if pattern == subject:
        return True
    wanted, tokens = pattern.split("."), subject.split(".")
    for at, want in enumerate(wanted):
        if want == ">":
            return len(tokens) > at
        if at >= len(tokens) or tokens[at] == ">" or want not in ("*", tokens[at]):
            return False
    return len(wanted) == len(tokens)


def covered(patterns: Iterable[str], subject: str) -> bool:
    """Whether any of ``patterns`` covers ``subject``."""
    return any(matches(pattern, subject) for pattern in patterns)
