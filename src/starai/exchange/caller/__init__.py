"""The caller's side of an exchange: a task offered, its answer read and carried to its end."""
