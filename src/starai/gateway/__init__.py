"""The gateway: OpenAI's HTTP API in front of a `TaskPort`; text outside, token ids inside."""
