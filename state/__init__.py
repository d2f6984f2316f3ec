"""Replicated state: clocks, CRDT documents, replication, consensus, storage.

Internal to peermesh: import from :mod:`mesh` instead.  The layer is reserved here so that its place between
:mod:`gossip` and :mod:`mesh` is fixed; what it holds is listed in ``ARCHITECTURE.md``.
"""
