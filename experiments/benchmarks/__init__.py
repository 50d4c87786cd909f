"""What `experiments/benchmark.py` measures, a module for each of its subcommands."""
