"""A whole network inside one Python program, asked through the openai package."""

import sys

import openai

from starai.local import Network

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
with Network(model) as network:
    client = openai.OpenAI(base_url=network.base_url, api_key=network.api_key)
    answer = client.chat.completions.create(
        model=network.model,
        messages=[{"role": "user", "content": "Who are you?"}],
        temperature=0.7,
        seed=1,
        max_tokens=60,
    )
    print(answer.choices[0].message.content)
