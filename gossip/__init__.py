"""Membership, failure detection, broadcast and peer discovery.

Internal to peermesh: import from :mod:`mesh` instead.  The protocols are cores (no I/O, no clock, no global
randomness); :mod:`gossip.service` is the asyncio shell that runs them over links.
"""
