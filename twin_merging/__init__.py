"""Twin-Merging (Lu et al., NeurIPS 2024) and the methods it is compared with."""

__version__ = "0.1.0"
