"""Experts: the encoder fine-tuned on one task each."""
