"""Merge methods: pure functions over one named tensor of the base and the stacked task vectors of the experts."""
