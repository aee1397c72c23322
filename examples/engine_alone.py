"""The engine alone, without a network: a story, four endings that share memory, and a stream.

Needs starai[engine]. ``python examples/engine_alone.py [MODEL]``
"""

import sys

from starai.engines.text import Engine

with Engine(*sys.argv[1:2], bits=8) as engine:
    print(engine.generate("Once upon a time", max_tokens=60, seed=1).text, "\n")
    begun = "There was a dragon who was afraid of the dark. One night she lost her way home, and"
    answers = engine.generate(begun, n=4, max_tokens=24, seed=1)
    print(*(f"...{choice.text}" for choice in answers.choices), sep="\n")
    print("\nMemory at its fullest:", engine.memory_peak(), "", sep="\n")
    for piece in engine.stream([{"role": "user", "content": "Who are you?"}], seed=1):
        print(piece, end="", flush=True)
    print()
