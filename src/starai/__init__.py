"""StarAI: one OpenAI-compatible AI service made of the devices that people already own.

Importing this package loads nothing heavy: take what you need from its parts, for example
``from starai.local import Network`` or ``from starai.client import Client``.
"""

__version__ = "0.1.0"
