"""peermesh."""
