"""The order of the stages, their cache, and the jobs that run them."""
