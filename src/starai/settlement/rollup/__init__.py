"""Chains to settle on: `base` says what one must answer, one file each for those that do."""
