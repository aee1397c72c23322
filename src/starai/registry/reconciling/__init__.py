"""What both sides of a task say, whether it agrees, and what follows when it does not."""
