"""From closed days to payouts: leaves and their tree, the day's manifest, and the chain.

`tree`, `leaves` and `manifest` are pure: values in, bytes out.
"""
