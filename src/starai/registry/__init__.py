"""The registry: hears both sides of each task, keeps what they signed, and admits parties."""
