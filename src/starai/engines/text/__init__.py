"""The native text engine: transformers' model definitions on our own attention and KV memory."""
