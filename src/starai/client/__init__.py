"""A thin client of a gateway: `Client` and `AsyncClient` talk, and raise StarAI's own errors."""

from starai.client.asynchronous import AsyncClient
from starai.client.synchronous import Client

__all__ = ["AsyncClient", "Client"]
