"""Chains to settle on: `base` says what one must answer, one file each for those that do."""

import sys

_RECURSION_LIMIT = sys.getrecursionlimit()


def restore_recursion_limit() -> None:
    """Put Python's limit back to what it was before the libraries of chains were imported.

    They raise it a hundredfold. Deep JSON, which anybody may send, would then overflow the stack
    and end the process, where it otherwise is an error.
    """
    sys.setrecursionlimit(_RECURSION_LIMIT)
