import os
import signal
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import LastCheckpoint


class Watch(Callback):
    """Which steps last.ckpt was of, whenever it had changed behind a batch or an epoch."""

    def __init__(self, folder):
        self.path = folder / "last.ckpt"
        self.steps = []

    def look(self):
        if self.path.exists():
            step = torch.load(self.path, weights_only=True)["global_step"]
            if step not in self.steps:
                self.steps.append(step)

    def on_train_batch_start(self, *_):
        self.look()

    def on_train_epoch_start(self, *_):
        self.look()

    def on_validation_start(self, *_):
        self.look()


ALWAYS = timedelta(0)


@pytest.mark.parametrize(
    ("every", "options", "steps"),
    [
        (timedelta(hours=1), {}, [7]),
        # Not behind an epoch's last batch, the seventh, before its end.
        (ALWAYS, {}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
        (ALWAYS, {"max_steps": 4}, [1, 2, 3]),
        # The seventh batch makes a step of its own.
        (ALWAYS, {"accumulate_grad_batches": 3}, [1, 2, 3, 4, 5]),
    ],
)
def test_it_is_written_where_a_resumed_run_leaves_out_nothing(
    fit, tiny, tmp_path, every, options, steps
):
    watch = Watch(tmp_path)
    fit(tiny(), watch, LastCheckpoint(str(tmp_path), every), num_sanity_val_steps=0, **options)
    assert watch.steps == steps


def test_sigterm_ends_the_run_with_a_checkpoint_of_that_step(fit, tiny, tmp_path):
    class Ask(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(tiny(), Ask(), LastCheckpoint(str(tmp_path)))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
