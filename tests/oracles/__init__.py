"""Slow, obvious float64 references in loops and numpy, which the fast code is compared with."""
