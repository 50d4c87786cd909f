"""The subcommands of `experiments/benchmark.py`, one module each."""
