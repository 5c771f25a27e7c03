"""Routers: an input's features in, its weight for each expert out."""
