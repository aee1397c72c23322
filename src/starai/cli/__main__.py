"""``python -m starai.cli``: the same as the ``starai`` command."""

from starai.cli.main import main

main()
