"""Models whose weights differ from example to example, evaluated a batch at a time."""
