"""``python -m starai.verifier FOLDER``: check an export; the exit status is 0 if nothing is wrong.

The last line of a sound export is ``head`` and the hash of its last closed day. With ``--gently``
it is one process of the lowest priority, and else as many as there are cores. With ``--kept FILE``
it begins after the days that an earlier check kept there; 2 says that the file is refused.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Final

from starai.verifier.checking import verify
from starai.verifier.keeping import KeptRefused

#: The niceness of what runs only when nothing else wants to.
_LOWEST: Final = 19


def main(arguments: list[str]) -> int:
    """Check the export that the one argument names, and say what was found."""
    rest = list(arguments)
    is_gentle = rest[:1] == ["--gently"]
    del rest[:is_gentle]
    kept_at = Path(rest[1]) if len(rest) == 3 and rest[0] == "--kept" else None
    del rest[: 2 if kept_at else 0]
    if len(rest) != 1:
        sys.stderr.write("usage: python -m starai.verifier [--gently] [--kept FILE] FOLDER\n")
        return 2
    if is_gentle and hasattr(os, "nice"):
        os.nice(_LOWEST)
    gc.disable()  # there are no cycles in millions of rows, only time to lose looking for them
    num_processes = 1 if is_gentle else os.cpu_count() or 1
    try:
        report = verify(Path(rest[0]), num_processes, kept_at=kept_at)
    except KeptRefused as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if report.began:
        sys.stdout.write(f"began {report.began}\n")
    for name, number in report.counts.items():
        sys.stdout.write(f"{number} {name}\n")
    for problem in report.problems:
        sys.stdout.write(f"WRONG: {problem}\n")
    if not report.problems:
        sys.stdout.write(f"head {report.head or '-'}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
