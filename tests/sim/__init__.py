"""Deterministic simulation of the whole broker: one seed, one run, byte for byte. `tools/sim.py` runs many of them."""
