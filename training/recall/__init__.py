"""Trains a small transformer to recall values by their keys: the yardstick of Star Attention."""
