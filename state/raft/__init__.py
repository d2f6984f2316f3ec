"""Consensus: a replicated log that a majority agrees on, and nothing acknowledged is ever lost from."""
