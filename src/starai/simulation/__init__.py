"""A whole network in virtual time: up to 100,000 nodes in one program, the same for the same seed.

`starai.simulation.scenario` reads what is to be simulated, `starai.simulation.running` runs it with
the real kernels, `starai.simulation.services` runs a small one with the real services.
"""
