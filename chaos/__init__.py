"""Simulation and fault injection.  Imports the layers; nothing imports it."""
