"""Compile the contracts; ``--check`` says whether what is committed is what their source gives.

Run ``make contracts`` after a change of a ``.vy`` file. Beside each goes a ``.json`` with its ABI,
its bytecode and the compiler's version, so that nobody who settles needs a compiler.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import vyper
from vyper.compiler import compile_code

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src/starai/settlement/contract", "tests/unit/settlement/tokens")


def sources() -> Iterator[Path]:
    """Every contract's source."""
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).glob("*.vy"))


def compiled(source: Path) -> str:
    """The text of the artefact of one source."""
    made = compile_code(source.read_text("utf-8"), output_formats=["abi", "bytecode"])
    artefact = {
        "compiler": f"vyper {vyper.__version__}",
        "bytecode": made["bytecode"],
        "abi": made["abi"],
    }
    return json.dumps(artefact, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Write the artefacts, or with ``--check`` compare them."""
    wrong = 0
    for source in sources():
        artefact, text = source.with_suffix(".json"), compiled(source)
        if "--check" not in arguments:
            artefact.write_text(text)
        elif not artefact.exists() or artefact.read_text() != text:
            print(f"{artefact.relative_to(ROOT)} is not what its source compiles to")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
