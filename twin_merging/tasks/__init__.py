"""Tasks: texts, labels, splits and the metric's name. Knows nothing of models."""
