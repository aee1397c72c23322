"""The engine without a network: a prompt in, a story out. Needs starai[engine]."""

import sys

from starai.engines.base import EngineSpec
from starai.engines.registry import open_engine
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
codec, engine = open_codec(open_model(model)), open_engine(EngineSpec("text", model))
prompt = tokens.pack(codec.encode("Once upon a time"))
stops = open_model(model).eos_token_ids
sampling = Sampling(sample_key=bytes(32), temperature=0.7)
engine.admit(b"story", Generation(prompt, 100, sampling, stops, salt=bytes(16)))
text = codec.stream()
while engine.has_work:
    print("".join(text.push(news.ids) for news in engine.step()), end="", flush=True)
print(text.flush())
