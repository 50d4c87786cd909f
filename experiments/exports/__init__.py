"""Export a run's network to other formats."""
