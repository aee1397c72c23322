"""Who gets a task: the parties of a role as matching sees them, and the way to one of them."""
