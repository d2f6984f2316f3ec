"""Documents and states as users of a node hold them; what replicates them is :mod:`state.replication`."""
