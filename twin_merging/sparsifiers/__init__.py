"""Sparsifiers: exclusive knowledge made small. Pure functions over stacked matrices."""
