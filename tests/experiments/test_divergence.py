"""A loss that is not finite ends a run, or sends it back to its last checkpoint."""

import math
import re

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import Divergence
from experiments.console import UserError

RECIPE = ("--trainer.max_epochs=6", "--ema.decay=0.9", "--lookahead.k=2", "--model.schedule=cosine")


class Poison(Callback):
    """Writes a NaN into the weights at the start of these epochs' second step."""

    def __init__(self, *epochs):
        self.epochs = list(epochs)
        self.rates = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.setdefault(trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"])
        if batch_idx == 1 and trainer.current_epoch in self.epochs:
            self.epochs.remove(trainer.current_epoch)
            with torch.no_grad():
                next(pl_module.network.parameters()).flatten()[0] = math.nan


def finite(state):
    return all(x.isfinite().all() for x in state.values() if x.is_floating_point())


def test_a_diverged_run_ends_with_exit_code_3_and_a_sound_checkpoint(tiny, command, tmp_path):
    argv = tiny(*RECIPE, f"--output={tmp_path}", "--name=diverged")
    checkpoint = tmp_path / "diverged" / "last.ckpt"
    with pytest.raises(UserError) as error:
        command(argv, callbacks=[Poison(2)])
    assert error.value.exit_code == 3
    assert "the training loss is not finite at step" in str(error.value)
    assert "learning rate" in str(error.value)
    assert str(checkpoint) in str(error.value)
    state = torch.load(checkpoint, weights_only=True)
    assert state["epoch"] == 1
    assert finite(state["state_dict"])
    assert finite(state["callbacks"]["EMA"]["average"])
    assert not checkpoint.with_name("result.json").exists()


def test_rollback_restores_the_checkpoint_and_halves_the_rate(tiny, command):
    undisturbed, poisoned = Poison(), Poison(2, 4)
    command(tiny(*RECIPE), callbacks=[undisturbed])
    run = command(tiny(*RECIPE, "--on_nan=rollback"), callbacks=[poisoned])
    shares = [poisoned.rates[epoch] / undisturbed.rates[epoch] for epoch in range(6)]
    assert shares == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25])
    state = torch.load(run.folder / "last.ckpt", weights_only=True)
    assert finite(state["state_dict"])
    assert finite(state["callbacks"]["EMA"]["average"])
    assert len(state["callbacks"]["Divergence"]["rollbacks"]) == 2
    assert run.record.rollbacks == 2


def test_a_divergence_seen_by_two_checks_is_one_rollback(tiny, command, monkeypatch):
    monkeypatch.setattr(Divergence, "EVERY", 2)
    run = command(tiny(*RECIPE, "--on_nan=rollback"), callbacks=[Poison(2)])
    assert run.record.steps % 6 == 0
    assert (run.record.steps // 6) % 2 == 1  # the last check of an epoch has two sums
    assert run.record.rollbacks == 1


def test_a_rollback_to_before_the_first_average_begins_the_average_anew(tiny, command):
    swa = ("--ema=false", "--swa.start=0.5")
    run = command(tiny(*RECIPE, *swa, "--on_nan=rollback"), callbacks=[Poison(3)])
    assert run.record.rollbacks == 1
    state = torch.load(run.folder / "last.ckpt", weights_only=True)["callbacks"]["SWA"]
    assert finite(state["average"])
    assert state["updates"] == 2


def test_after_a_rollback_the_lines_show_the_halved_rate(tiny, command):
    poison, shown = Poison(2), "--trainer.enable_progress_bar=true"
    run = command(tiny(*RECIPE, shown, "--on_nan=rollback"), callbacks=[poison])
    rates = [float(x) for x in re.findall(r"^epoch .*, lr ([\d.e-]+), ", run.output, re.MULTILINE)]
    assert rates[:5] == pytest.approx([poison.rates[epoch] for epoch in range(1, 6)], rel=1e-2)


def test_a_third_divergence_ends_the_run(tiny, command):
    with pytest.raises(UserError, match="the training loss is not finite"):
        command(tiny(*RECIPE, "--on_nan=rollback"), callbacks=[Poison(1, 2, 3)])
