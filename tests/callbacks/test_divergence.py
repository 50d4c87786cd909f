"""A run diverges by its loss, by its averages, or by overflows in fp16."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from callbacks import EMA, SWA, DivergedError, Divergence, LastCheckpoint


class Poison(Callback):
    """Writes a NaN into an average before the validation of an epoch."""

    def __init__(self, average, epoch):
        self.average, self.epoch = average, epoch

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking and trainer.current_epoch == self.epoch:
            with torch.no_grad():
                next(self.average.network.parameters()).view(-1)[0] = torch.nan


@pytest.mark.parametrize("average", [EMA(decay=0.5), SWA(start=0.0)])
def test_nan_in_the_average_alone_ends_the_run_and_is_named(average, fit, tiny, tmp_path):
    name = type(average).__name__
    callbacks = [average, Poison(average, 2), Divergence(tmp_path), LastCheckpoint(tmp_path)]
    module = tiny()
    with pytest.raises(DivergedError, match=f"^the {name} weights are not finite at step 21, "):
        fit(module, *callbacks, max_epochs=4)
    assert all(p.isfinite().all() for p in module.network.parameters())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["epoch"] == 1
    assert all(x.isfinite().all() for x in state["callbacks"][name]["average"].values())


@pytest.fixture
def train(fit, tiny, tmp_path):
    """Train in fp16 with an infinite loss at these batches."""

    class Overflowing(tiny):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if self.trainer.fit_loop.total_batch_idx in overflows else loss

    def train(batches):
        nonlocal overflows
        overflows = batches
        module = Overflowing()
        half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
        fit(module, Divergence(tmp_path), plugins=half, max_epochs=8)
        return module, half.scaler

    overflows = ()
    return train


def test_an_overflow_that_the_loss_scaler_skips_is_not_divergence(train):
    module, scaler = train({0, 1, 6, 30})
    assert all(p.isfinite().all() for p in module.network.parameters())
    assert scaler.get_scale() == 2.0**12


def test_an_overflow_that_no_scale_prevents_is_divergence(train):
    with pytest.raises(DivergedError, match="the training loss is not finite at step") as error:
        train(range(7, 1000))
    assert "no checkpoint yet" in str(error.value)
