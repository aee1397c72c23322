"""The client for programs without an event loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal, Self, overload

import httpx

from starai.client import base
from starai.core.errors import StarAIError, Unavailable
from starai.core.randomness import Randomness, SystemRandomness


class Client:
    """Talks to one gateway; close it with ``close`` or ``with``."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        model: str | None = None,
        transport: httpx.BaseTransport | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        """Use the gateway at ``base_url``; ``model`` None: the first that it serves."""
        self._http = httpx.Client(transport=transport, **base.settings(base_url, api_key))
        self._model = model
        self._randomness = randomness or SystemRandomness()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[str]:
        """The names of the models that the gateway offers.

        Raises:
            StarAIError: as the gateway says; `Unavailable` when it cannot be reached.
        """
        return base.read_models(self._send({"method": "GET", "url": "/v1/models"}).content)

    @overload
    def chat(
        self, messages: base.Messages, *, stream: Literal[False] = False, **fields: Any
    ) -> str: ...

    @overload
    def chat(
        self, messages: base.Messages, *, stream: Literal[True], **fields: Any
    ) -> Iterator[str]: ...

    def chat(
        self, messages: base.Messages, *, stream: bool = False, **fields: Any
    ) -> str | Iterator[str]:
        """Ask; returns the text of the answer, or with ``stream`` an iterator of its pieces.

        Args:
            messages: a question, or a conversation.
            stream: whether to get the text as it comes; closing the iterator cancels the work.
            fields: ``model`` and any other field of OpenAI's chat completions.

        Raises:
            StarAIError: as the gateway says; `Unavailable` when it cannot be reached.
        """
        if stream:
            return self._stream(messages, fields)
        response = self._send(self._request(messages, fields, stream=False))
        return base.read_answer(response.content)

    def _stream(self, messages: base.Messages, fields: dict[str, Any]) -> Iterator[str]:
        response = self._send(self._request(messages, fields, stream=True), stream=True)
        try:
            for line in response.iter_lines():
                event = base.read_event(line)
                if event.text:
                    yield event.text
                if event.done:
                    return
        except httpx.TransportError as error:
            raise base.broke_off() from error
        finally:
            response.close()
        raise base.broke_off()

    def _request(
        self, messages: base.Messages, fields: dict[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        model = fields.pop("model", None) or self._model
        if model is None:
            names = self.models()
            if not names:
                raise Unavailable("The gateway serves no model right now.")
            model = self._model = names[0]
        return base.chat_request(messages, model, fields, stream, self._randomness)

    def _send(self, request: dict[str, Any], *, stream: bool = False) -> httpx.Response:
        """Send, and send again while that may help; an error's response is raised."""
        attempt = 0
        while True:
            try:
                return self._send_once(request, stream=stream)
            except StarAIError as error:
                wait_s = base.retry_wait_s(error, attempt)
                if wait_s is None:
                    raise
            time.sleep(wait_s)
            attempt += 1

    def _send_once(self, request: dict[str, Any], *, stream: bool) -> httpx.Response:
        try:
            response = self._http.send(self._http.build_request(**request), stream=stream)
            if response.status_code >= 400:
                response.read()
                raise base.error_of(response)
        except httpx.TransportError as error:
            raise base.transport_error(error, self._http.base_url) from error
        return response
