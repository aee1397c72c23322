"""The client for async programs (anyio: asyncio or trio)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, Literal, Self, overload

import anyio
import httpx

from starai.client import base
from starai.core.errors import StarAIError, Unavailable
from starai.core.randomness import Randomness, SystemRandomness


class AsyncClient:
    """Talks to one gateway; close it with ``aclose`` or ``async with``."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        model: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        """Use the gateway at ``base_url``; ``model`` None: the first that it serves."""
        self._http = httpx.AsyncClient(transport=transport, **base.settings(base_url, api_key))
        self._model = model
        self._randomness = randomness or SystemRandomness()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[str]:
        """The names of the models that the gateway offers.

        Raises:
            StarAIError: as the gateway says; `Unavailable` when it cannot be reached.
        """
        return base.read_models((await self._send({"method": "GET", "url": "/v1/models"})).content)

    @overload
    def chat(
        self, messages: base.Messages, *, stream: Literal[False] = False, **fields: Any
    ) -> Awaitable[str]: ...

    @overload
    def chat(
        self, messages: base.Messages, *, stream: Literal[True], **fields: Any
    ) -> AsyncIterator[str]: ...

    def chat(
        self, messages: base.Messages, *, stream: bool = False, **fields: Any
    ) -> Awaitable[str] | AsyncIterator[str]:
        """Ask; await the text of the answer, or with ``stream`` iterate over its pieces.

        Args:
            messages: a question, or a conversation.
            stream: whether to get the text as it comes; leaving the iteration cancels the work.
            fields: ``model`` and any other field of OpenAI's chat completions.

        Raises:
            StarAIError: as the gateway says; `Unavailable` when it cannot be reached.
        """
        return self._stream(messages, fields) if stream else self._whole(messages, fields)

    async def _whole(self, messages: base.Messages, fields: dict[str, Any]) -> str:
        response = await self._send(await self._request(messages, fields, stream=False))
        return base.read_answer(response.content)

    async def _stream(self, messages: base.Messages, fields: dict[str, Any]) -> AsyncIterator[str]:
        response = await self._send(await self._request(messages, fields, stream=True), stream=True)
        try:
            async with aclosing(response.aiter_lines()) as lines:  # type: ignore[type-var]
                async for line in lines:
                    event = base.read_event(line)
                    if event.text:
                        yield event.text
                    if event.done:
                        return
        except httpx.TransportError as error:
            raise base.broke_off() from error
        finally:
            await response.aclose()
        raise base.broke_off()

    async def _request(
        self, messages: base.Messages, fields: dict[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        model = fields.pop("model", None) or self._model
        if model is None:
            names = await self.models()
            if not names:
                raise Unavailable("The gateway serves no model right now.")
            model = self._model = names[0]
        return base.chat_request(messages, model, fields, stream, self._randomness)

    async def _send(self, request: dict[str, Any], *, stream: bool = False) -> httpx.Response:
        """Send, and send again while that may help; an error's response is raised."""
        attempt = 0
        while True:
            try:
                return await self._send_once(request, stream=stream)
            except StarAIError as error:
                wait_s = base.retry_wait_s(error, attempt)
                if wait_s is None:
                    raise
            await anyio.sleep(wait_s)
            attempt += 1

    async def _send_once(self, request: dict[str, Any], *, stream: bool) -> httpx.Response:
        try:
            response = await self._http.send(self._http.build_request(**request), stream=stream)
            if response.status_code >= 400:
                await response.aread()
                raise base.error_of(response)
        except httpx.TransportError as error:
            raise base.transport_error(error, self._http.base_url) from error
        return response
