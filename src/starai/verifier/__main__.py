"""``python -m starai.verifier FOLDER``: check an export; the exit status is 0 if nothing is wrong.

The last line of a sound export is ``head`` and the hash of its last closed day.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from starai.verifier.checking import verify


def main(arguments: list[str]) -> int:
    """Check the export that the one argument names, and say what was found."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m starai.verifier FOLDER\n")
        return 2
    gc.disable()  # there are no cycles in millions of rows, only time to lose looking for them
    report = verify(Path(arguments[0]), num_processes=os.cpu_count() or 1)
    for name, number in report.counts.items():
        sys.stdout.write(f"{number} {name}\n")
    for problem in report.problems:
        sys.stdout.write(f"WRONG: {problem}\n")
    if not report.problems:
        sys.stdout.write(f"head {report.head or '-'}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
