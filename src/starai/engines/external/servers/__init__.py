"""The kinds of servers, by name, in the order in which an unknown one is asked what it is.

Those that can be told apart by questions of their own come first; what only knows OpenAI's text
completions comes last.
"""

from __future__ import annotations

from typing import Final

from starai.core.errors import ConfigurationRefused
from starai.engines.external.base import Found, NotThis, Server
from starai.engines.external.connection import Connection
from starai.engines.external.servers.llama_server import LlamaServer
from starai.engines.external.servers.ollama import Ollama
from starai.engines.external.servers.sglang import Sglang
from starai.engines.external.servers.texts import LlamaCppPython, LmStudio, OpenAiLike, OpenVino
from starai.engines.external.servers.vllm import Vllm
from starai.models.manifest import ModelManifest

SERVERS: Final[dict[str, Server]] = {
    "vllm": Vllm(),
    "sglang": Sglang(),
    "llama-server": LlamaServer(),
    "ollama": Ollama(),
    "lm-studio": LmStudio(),
    "openvino": OpenVino(),
    "llama-cpp-python": LlamaCppPython(),
    "openai": OpenAiLike(),
}


async def recognise(
    connection: Connection, manifest: ModelManifest, kind: str, served: str
) -> tuple[Server, Found]:
    """The server behind a connection, and what it can do for a model.

    Args:
        connection: to the server.
        manifest: the model that it shall serve.
        kind: a name of `SERVERS`, or ``auto``.
        served: the model's name there; empty to find it out.

    Raises:
        ConfigurationRefused: it cannot serve the model; says why.
        Unavailable: it cannot be reached, or is not ready yet.
    """
    if kind != "auto" and kind not in SERVERS:
        raise ConfigurationRefused(f"kind is auto or one of {', '.join(SERVERS)}")
    for server in SERVERS.values() if kind == "auto" else [SERVERS[kind]]:
        try:
            return server, await server.probe(connection, manifest, served)
        except NotThis:
            continue
    what = "an OpenAI-compatible server" if kind == "auto" else SERVERS[kind].name
    raise ConfigurationRefused(f"{connection.url} is not {what}")
