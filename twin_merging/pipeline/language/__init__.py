"""The pipeline of tasks that a language model answers by text."""
