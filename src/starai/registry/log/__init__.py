"""The log that nobody can rewrite unseen: blocks, proofs, witnesses."""
