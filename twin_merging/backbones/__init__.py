"""Architectures: an encoder, which merges, and a head a task, which never does."""
