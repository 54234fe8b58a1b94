"""Plain functions on tensors and arrays: no networks, no files. Bad input raises `ValueError`."""
