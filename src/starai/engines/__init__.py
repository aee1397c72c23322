"""Engines: token ids in, token ids out; each in its own worker process."""
