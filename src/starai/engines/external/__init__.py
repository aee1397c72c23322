"""An engine that is a server already: vLLM, SGLang, llama.cpp, Ollama, LM Studio, OpenVINO, others.

`engine.py` keeps the contract, `servers/` knows how each server is asked, `spelling.py` turns token
ids into text and back for servers that know only text, `connection.py` speaks HTTP.
"""

from __future__ import annotations
