"""An independent verifier of the registry's books: reads an export, and nothing else.

It shares no code with the registry, nor with anything else of StarAI: every format, rule and hash
is written here a second time, so that a mistake would have to be made twice to stay unseen. It
needs PyNaCl for signatures, PyCryptodome for Keccak, and msgspec for the one file that it keeps.
``python -m starai.verifier FOLDER``.
"""
