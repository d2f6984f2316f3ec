"""Logical time: version vectors, dotted registers, hybrid timestamps, and when their entries may be forgotten."""
