"""What the parties say to each other: frozen messages, ids, canonical bytes and ports. No I/O."""
