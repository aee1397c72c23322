"""A sealed task between two parties: the caller's side, the callee's side, and the record of it.

The same exchange serves both hops of the road (gateway to distributor, distributor to node). It
knows nothing of text, engines, matching or money.
"""
