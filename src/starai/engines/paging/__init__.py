"""Bookkeeping of paged KV memory: who holds which block, and what is cheaper when none is left.

It knows no tensors, no clock and no files.
"""
