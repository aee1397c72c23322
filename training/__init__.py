"""How the models that ship with StarAI are made; run from the repository root, never installed."""
