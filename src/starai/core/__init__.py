"""The floor of the house: errors, clock, randomness, limits, logging; no word of the trade."""
