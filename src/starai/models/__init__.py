"""Model files without torch: what a model is, its identity, its tokenizer and its chat template."""
