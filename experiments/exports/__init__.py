"""A run's network for where there is no training."""
