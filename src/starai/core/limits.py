"""The limits of everything, with the reason beside each. Nothing here is a setting."""

from __future__ import annotations

from typing import Final

#: A wire frame. NATS' default is 1 MiB; a 128k-token prompt is 512 KiB of u32 ids.
FRAME_BYTES_MAX: Final = 1 << 20
#: A sealed piece of an answer: a few tokens with 20 log-probabilities each, and room for proofs.
CHUNK_BYTES_MAX: Final = 1 << 16
#: An HTTP body: a 128k-token prompt is about 600 KB of text; JSON escapes can double it.
REQUEST_BODY_BYTES_MAX: Final = 4 << 20
#: Choices of one request, as OpenAI's clients rarely ask for more and each one is a task.
CHOICES_MAX: Final = 8
#: OpenAI's own limit on ``top_logprobs``.
TOP_LOGPROBS_MAX: Final = 20
#: The candidates of the keyed Gumbel race (proof design, section 4.3).
SAMPLER_CANDIDATES: Final = 64
#: ``stop`` strings of one request; OpenAI's limit.
STOP_STRINGS_MAX: Final = 4
#: ``logit_bias`` entries of one request; OpenAI's limit.
LOGIT_BIAS_MAX: Final = 300
#: A JSON schema or grammar: the largest in use have a few thousand lines, and compiling one costs.
GRAMMAR_CHARACTERS_MAX: Final = 1 << 16
#: Priorities go from minus this to this.
PRIORITY_MAX: Final = 100
#: An embedding: 12,288 float32, the widest hidden states in use; it must fit into one chunk.
EMBEDDING_BYTES_MAX: Final = 48 << 10
#: Inputs of one request for embeddings; OpenAI's limit.
EMBEDDING_INPUTS_MAX: Final = 2048
#: Parts of an answer that wait in memory for their reader before it counts as too slow.
ANSWER_PARTS_BUFFERED_MAX: Final = 4096
#: Failed attempts at one task without a token between them before the client is told.
ATTEMPTS_MAX: Final = 6
#: Attempts at one task in all, those that went on well for a while included.
ATTEMPT_NUMBERS: Final = 64
#: How long a request may take in all.
REQUEST_DEADLINE_S: Final = 600.0
#: A node counts as gone after this many seconds without a beat.
BEAT_LEASE_S: Final = 3.0
#: How often every serving party tells how it is.
BEAT_INTERVAL_S: Final = 0.5
#: A prekey lives this long; its deletion gives forward secrecy.
PREKEY_LIFETIME_S: Final = 3600.0
#: Records of one confirmation; larger blocks are confirmed in several parts.
CONFIRM_RECORDS_MAX: Final = 2000
#: Different records of one attempt by one party that the registry keeps: the second already
#: contradicts the first, and all of them are judged together each time that one is added.
ATTEMPT_RECORDS_MAX: Final = 8
