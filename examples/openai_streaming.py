"""The unmodified openai package against a running network: `starai up` in another terminal."""

import sys

import openai

from starai.cli.options import DEFAULT_HOME
from starai.local.home import Home

question = sys.argv[1] if len(sys.argv) > 1 else "Tell me a story."
known = Home(DEFAULT_HOME.expanduser()).client()  # written by `starai up`
client = openai.OpenAI(base_url=known.base_url, api_key=known.api_key)
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
