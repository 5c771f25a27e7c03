"""Merging for its own sake: models in, a model out, without tasks, data or fine-tuning."""
