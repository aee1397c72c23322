"""Fakes as a product: parts of a network that do exactly what a test tells them."""
