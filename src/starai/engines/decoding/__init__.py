"""What may come next, and how to get there faster: grammars, drafts and beams. No torch, no I/O."""
