"""The code uses these private parts of Lightning. If a new version changes them, tests fail."""

import pytest
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)

from experiments.training.trainer import Trainer

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}


def test_one_private_method_distinguishes_training_by_steps_and_by_epochs():
    """`training/trainer.py` replaces `_iteration_based_training`.

    With max_steps Lightning would restart an epoch's end as a step within the epoch.
    """
    theirs = LightningTrainer(max_steps=3, **QUIET)
    assert theirs.fit_loop._iteration_based_training() is True
    assert LightningTrainer(max_epochs=3, **QUIET).fit_loop._iteration_based_training() is False
    assert Trainer(max_steps=3, **QUIET).fit_loop._iteration_based_training() is False


@pytest.mark.parametrize(
    ("strategy", "launcher"),
    [("ddp", _SubprocessScriptLauncher), ("ddp_spawn", _MultiProcessingLauncher)],
)
def test_processes_that_run_the_command_again_have_a_private_launcher(strategy, launcher):
    """`training/devices.py` accepts `_SubprocessScriptLauncher` alone.

    Both strategies are DDPStrategy, and no public attribute tells how they start processes.
    """
    trainer = LightningTrainer(strategy=strategy, devices=2, **QUIET)
    assert type(trainer.strategy) is DDPStrategy
    trainer.strategy._configure_launcher()
    assert type(trainer.strategy.launcher) is launcher
