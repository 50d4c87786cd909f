"""Counting the operations of trainings, and the memory of steps."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmarks.memory import held_bytes, peak_growth
from experiments.benchmarks.operations import FILE, CountOperations
from experiments.console import UserError
from experiments.training.experiment import operations_per_image

CPU = torch.device("cpu")
BATCH, INPUTS, HIDDEN, OUTPUTS = 4, 5, 6, 3


class MultiplyingSGD(torch.optim.SGD):
    """An optimizer with one matrix product per step."""

    def step(self, closure=None):
        loss = super().step(closure)
        torch.mm(torch.ones(7, 8), torch.ones(8, 9))
        return loss


class TwoLayers(LightningModule):
    """Two linear layers; the first is frozen from step `frozen_from` on."""

    def __init__(self, frozen_from=None, compiled=False):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(INPUTS, HIDDEN, bias=False), nn.Linear(HIDDEN, OUTPUTS, bias=False)
        )
        if compiled:
            self.network.compile(backend="eager")
        self.frozen_from = frozen_from

    def forward(self, x):
        return self.network(x)

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == self.frozen_from:
            self.network[0].requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return MultiplyingSGD(self.parameters(), lr=0.1)


def count(module, folder, batches=5, ckpt_path=None, **options):
    counter = CountOperations()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[counter],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1} | options,
    )
    images = DataLoader(TensorDataset(torch.ones(BATCH * batches, INPUTS)), BATCH)
    trainer.fit(module, images, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    (written,) = json.loads((folder / FILE).read_text()).values()
    assert written == counter.total
    return written


first = 2 * BATCH * INPUTS * HIDDEN  # one product of the first layer
second = 2 * BATCH * HIDDEN * OUTPUTS
optimizer = 2 * 7 * 8 * 9
# Forward pass and gradient of the weights; the second layer also has the gradient of its inputs.
whole = 2 * first + 3 * second + optimizer


def test_every_step_counts_forward_backward_and_optimizer(tmp_path):
    assert count(TwoLayers(), tmp_path) == 5 * whole


def test_layers_frozen_during_training_are_no_longer_counted(tmp_path):
    after = first + 2 * second + optimizer
    assert count(TwoLayers(frozen_from=2), tmp_path) == 2 * whole + 3 * after


def test_a_resumed_training_counts_the_earlier_steps(tmp_path):
    count(TwoLayers(), tmp_path)
    resumed = count(TwoLayers(), tmp_path, ckpt_path=tmp_path / "last.ckpt", max_epochs=3)
    assert resumed == 3 * 5 * whole


def test_accumulated_batches_count_without_the_optimizer(tmp_path):
    counted = count(TwoLayers(), tmp_path, accumulate_grad_batches=2)
    assert counted == 5 * (whole - optimizer) + 3 * optimizer


def test_a_compiled_network_counts_as_the_eager_one(tmp_path):
    assert count(TwoLayers(compiled=True), tmp_path) == 5 * whole


def test_counting_changes_no_weight_of_a_run_but_for_rounding(experiment):
    flags = ("--ema=false", "--trainer.max_epochs=1")
    weights = []
    for callbacks in ([], [counter := CountOperations()]):
        run = experiment(*flags, callbacks=callbacks)
        weights.append(torch.cat([p.flatten() for p in run.cli.model.network.parameters()]))
    assert torch.allclose(*weights, atol=1e-6)
    # A backward pass is about two forward passes.
    forward = operations_per_image(run.cli.model) * 32
    assert counter.total / (3 * forward) == pytest.approx(3, rel=0.05)


def test_several_devices_are_refused():
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(UserError, match="one device, got 2"):
        CountOperations().setup(trainer, TwoLayers(), "fit")


def test_the_peak_counts_simultaneous_tensors_above_the_start():
    kept = torch.ones(1_000)

    def call():
        a, b = torch.empty(2_000), torch.empty(3_000)
        del a
        c = kept + 1
        return b, c

    assert peak_growth(call, CPU) == 4 * 5_000


def test_tensors_with_shared_memory_are_stored_once():
    x, y = torch.empty(10), torch.empty(5, dtype=torch.float64)
    assert held_bytes([x, y, x[2:], x.view(2, 5)]) == 40 + 40
