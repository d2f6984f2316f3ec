"""Replicated documents: CRDTs by pycrdt, behind the guards of :mod:`state.guards`."""
