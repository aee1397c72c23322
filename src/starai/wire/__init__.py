"""Carries messages between parties: NATS for real, an in-memory network for simulation."""
