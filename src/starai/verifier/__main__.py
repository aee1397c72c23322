"""``python -m starai.verifier FOLDER``: check an export; the exit status is 0 if nothing is wrong.

The last line of a sound export is ``head`` and the hash of its last closed day. With ``--gently``
before the folder it is one process of the lowest priority, and else as many as there are cores.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Final

from starai.verifier.checking import verify

#: The niceness of what runs only when nothing else wants to.
_LOWEST: Final = 19


def main(arguments: list[str]) -> int:
    """Check the export that the one argument names, and say what was found."""
    is_gentle = arguments[:1] == ["--gently"]
    if len(arguments) != 1 + is_gentle:
        sys.stderr.write("usage: python -m starai.verifier [--gently] FOLDER\n")
        return 2
    if is_gentle and hasattr(os, "nice"):
        os.nice(_LOWEST)
    gc.disable()  # there are no cycles in millions of rows, only time to lose looking for them
    num_processes = 1 if is_gentle else os.cpu_count() or 1
    report = verify(Path(arguments[-1]), num_processes=num_processes)
    for name, number in report.counts.items():
        sys.stdout.write(f"{number} {name}\n")
    for problem in report.problems:
        sys.stdout.write(f"WRONG: {problem}\n")
    if not report.problems:
        sys.stdout.write(f"head {report.head or '-'}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
