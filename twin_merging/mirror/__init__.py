"""A folder that holds all an experiment needs, for machines without a network."""
