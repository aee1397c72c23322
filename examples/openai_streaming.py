"""The unmodified openai package against a running network: `starai up` in another terminal."""

import os
import sys
from pathlib import Path

import openai

from starai.local.home import Home

question = sys.argv[1] if len(sys.argv) > 1 else "Tell me a story."
home = Home(Path(os.environ.get("STARAI_HOME", "~/.starai")).expanduser())
known = home.client()  # `starai up` wrote down where it is and the key it printed
with openai.OpenAI(base_url=known.base_url, api_key=known.api_key) as client:
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            print(f"\n({chunk.usage.completion_tokens} tokens)")
