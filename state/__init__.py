"""Replicated state: clocks, guards, CRDT documents, and the journal on disk; replication and consensus are to come.

Internal to peermesh: import from :mod:`mesh` instead.
"""
