"""Train and test one experiment.

python experiments/run.py --arch sam_resnet
python experiments/run.py --arch sam_resnet --trainer.max_epochs 5 --model.lr 0.05 --ema.decay 0.99
python experiments/run.py --arch sam_resnet --help
"""

import os
import sys

from experiments.console import command
from experiments.training.allocator import keep_freed_memory
from experiments.training.launch import read_launch


@command
def main() -> None:
    launch = read_launch(sys.argv[1:])
    if launch.quick:
        # Two threads gain little for so small a network, and wait for each other if other work uses
        # the cores: 371 s were measured with two threads on two busy cores, and 40 s with one.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    keep_freed_memory()
    # After the launch, whose mistakes are answered before torch is imported, which takes seconds.
    from experiments.reporting.tables import show_result
    from experiments.training.cli import ExperimentCLI
    from experiments.training.experiment import run_experiment

    run_experiment(ExperimentCLI(launch), show_result)


if __name__ == "__main__":
    main()
