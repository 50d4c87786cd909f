"""Train and test one experiment.

python experiments/run.py --arch sam_resnet
python experiments/run.py --arch sam_resnet --trainer.max_epochs 5 --model.lr 0.05 --ema.decay 0.99
python experiments/run.py --arch sam_resnet --help
"""

import sys

from experiments.training.allocator import keep_freed_memory
from experiments.training.launch import FULL_DISK, fail, read_launch


def main() -> None:
    launch = read_launch(sys.argv[1:])
    keep_freed_memory()
    # After the launch, whose mistakes are answered before torch is imported, which takes seconds.
    from experiments.training.cli import ExperimentCLI  # noqa: PLC0415
    from experiments.training.experiment import run_experiment  # noqa: PLC0415

    try:
        run_experiment(ExperimentCLI(launch))
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        fail(f"the disk is full: {error}")


if __name__ == "__main__":
    main()
