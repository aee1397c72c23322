"""The embedded model: its generated corpus, its tokenizer and its training."""
