import os
import signal
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from callbacks import LastCheckpoint


def steps_of(path):
    return torch.load(path, weights_only=True)["global_step"]


class Watch(Callback):
    """Records the step of each new last.ckpt, checked before each batch, epoch and validation."""

    def __init__(self, folder):
        self.path = folder / "last.ckpt"
        self.steps = []

    def look(self):
        if self.path.exists():
            step = steps_of(self.path)
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
    ("every", "options", "steps", "end"),
    [
        (timedelta(hours=1), {}, [7], 14),
        # Step 7 ends an epoch. It is not saved after the batch, but at the end of the epoch.
        (ALWAYS, {}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], 14),
        (ALWAYS, {"max_steps": 4}, [1, 2, 3], 4),
        # The epoch ends after seven batches, so batch 7 alone is a step.
        (ALWAYS, {"accumulate_grad_batches": 3}, [1, 2, 3, 4, 5], 6),
        # Step 10 is followed by a validation.
        (
            ALWAYS,
            {"check_val_every_n_epoch": None, "val_check_interval": 10},
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13],
            14,
        ),
    ],
)
def test_it_is_written_only_if_a_resumed_run_skips_nothing(
    fit, tiny, tmp_path, every, options, steps, end
):
    watch = Watch(tmp_path)
    fit(tiny(), watch, LastCheckpoint(str(tmp_path), every), num_sanity_val_steps=0, **options)
    assert watch.steps == steps
    assert steps_of(tmp_path / "last.ckpt") == end


class Clock(Callback):
    """Clock that advances by a second before each batch."""

    def __init__(self, patch):
        self.now = 1_000.0
        patch.setattr("callbacks.last_checkpoint.monotonic", lambda: self.now)

    def on_train_batch_start(self, *_):
        self.now += 1


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        # An epoch takes seven seconds. The first is saved because there is no file yet.
        (30, [7, 37, 67]),
        (14, [7, 21, 35, 49, 63, 77]),  # at ends of epochs
        (5, [*range(5, 84, 5)]),  # also within epochs
        (1_000, [7]),
    ],
)
def test_it_is_written_after_some_time(fit, tiny, tmp_path, monkeypatch, seconds, steps):
    watch, every = Watch(tmp_path), timedelta(seconds=seconds)
    last = LastCheckpoint(str(tmp_path), every)
    fit(tiny(), watch, Clock(monkeypatch), last, num_sanity_val_steps=0, max_epochs=12)
    assert watch.steps == steps
    assert steps_of(tmp_path / "last.ckpt") == 84


def test_a_resumed_run_waits_for_the_time_to_write(fit, tiny, tmp_path):
    last = tmp_path / "last.ckpt"
    fit(tiny(), LastCheckpoint(str(tmp_path)), max_epochs=1)
    watch = Watch(tmp_path)
    fit(tiny(), watch, LastCheckpoint(str(tmp_path)), max_epochs=4, ckpt_path=last)
    assert watch.steps == [7]
    assert steps_of(last) == 28


def test_the_end_by_time_is_written(fit, tiny, tmp_path):
    timer = Timer({"seconds": 0}, interval="epoch")
    fit(tiny(), timer, LastCheckpoint(str(tmp_path)), max_epochs=1)
    assert not (tmp_path / "last.ckpt").exists()  # training ends before the first step

    class Late(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                timer._duration = 0

    timer = Timer({"days": 1}, interval="epoch")
    fit(tiny(), timer, Late(), LastCheckpoint(str(tmp_path)), max_epochs=9)
    assert steps_of(tmp_path / "last.ckpt") == 21


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_state_of_the_last_epochs_end(fit, tiny, tmp_path, error):
    class Fail(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (2, 3):
                raise error

    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        fit(tiny(), Fail(), LastCheckpoint(str(tmp_path)), max_epochs=4)
    assert steps_of(tmp_path / "last.ckpt") == 14


def test_sigterm_ends_the_run_with_a_checkpoint_of_that_step(fit, tiny, tmp_path):
    class Ask(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(tiny(), Ask(), LastCheckpoint(str(tmp_path)))
    assert steps_of(tmp_path / "last.ckpt") == 4
