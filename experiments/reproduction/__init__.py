"""Training what the suites still lack, here or on many machines."""
