"""A small LightningModule that every test can really train."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


class Loader:
    """The same random images (8, 3, 6, 6) and labels in every epoch."""

    def __init__(self, batches: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (
                torch.randn(8, 3, 6, 6, generator=generator),
                torch.randint(3, (8,), generator=generator),
            )
            for _ in range(batches)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Tiny(LightningModule):
    """Small network that is trained by SGD with momentum, and records values for the tests."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, overflow_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(64, 3),
        )
        self.overflow_at = overflow_at
        #: the learning rate of every optimizer step
        self.rates: list[float] = []
        #: the metrics of every validation
        self.validations: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def on_after_backward(self) -> None:
        if self.trainer.fit_loop.total_batch_idx == self.overflow_at:
            self.network[0].weight.grad.fill_(torch.inf)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def evaluate(self, network: nn.Module, batch: Batch, suffix: str) -> None:
        assert not network.training
        images, labels = batch
        logits = network(images)
        right = (logits.argmax(dim=1) == labels).float().mean()
        batch_sums = torch.stack([F.cross_entropy(logits, labels), right, torch.tensor(1.0)])
        self._sums[suffix] = self._sums.get(suffix, torch.zeros(3)) + batch_sums

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(self.network, batch, "")

    def on_validation_epoch_end(self) -> None:
        metrics = {}
        for suffix, (loss, accuracy, batches) in self._sums.items():
            metrics[f"val/loss{suffix}"] = loss / batches
            metrics[f"val/acc{suffix}"] = accuracy / batches
        self.log_dict(metrics)
        self._sums = {}
        if not self.trainer.sanity_checking:
            self.validations.append({name: float(value) for name, value in metrics.items()})

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def equal(a: Any, b: Any) -> bool:
    """Whether nested containers hold the same keys and, bit for bit, the same values."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture
def train_batches() -> Loader:
    return Loader(batches=7, seed=1)


@pytest.fixture
def val_batches() -> Loader:
    return Loader(batches=2, seed=2)


@pytest.fixture
def fit(tmp_path: Path, train_batches: Loader, val_batches: Loader) -> Callable[..., Trainer]:
    """Fit a module on the CPU with these callbacks; options are the Trainer's."""

    def fit(
        module: LightningModule,
        *callbacks: Callback,
        ckpt_path: Path | None = None,
        val: Any = val_batches,
        **options: Any,
    ) -> Trainer:
        silence: dict[str, Any] = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        }
        trainer = Trainer(
            accelerator="cpu",
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            **{"max_epochs": 2} | silence | options,
        )
        trainer.fit(module, train_batches, val, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return fit


@pytest.fixture
def train_plainly(train_batches: Loader) -> Callable[..., torch.optim.Optimizer]:
    """Train Tiny's network as `fit` does, in a plain loop, and call `after_step` each time."""

    def train_plainly(
        network: nn.Module,
        after_step: Callable[[], None],
        epochs: int = 2,
        accumulate: int = 1,
    ) -> torch.optim.Optimizer:
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        steps = 0
        for _ in range(epochs):
            for position, (images, labels) in enumerate(train_batches, start=1):
                (F.cross_entropy(network(images), labels) / accumulate).backward()
                if position % accumulate == 0 or position == len(train_batches):
                    for group in optimizer.param_groups:
                        group["lr"] = 0.1 / (1 + steps)
                    optimizer.step()
                    optimizer.zero_grad()
                    steps += 1
                    after_step()
        return optimizer

    return train_plainly


@pytest.fixture
def resume_is_exact(tmp_path: Path, fit: Callable[..., Trainer]) -> Callable[..., None]:
    """Assert that four epochs end the same when interrupted after any of the first three."""

    def end(trainer: Trainer, module: Tiny) -> dict[str, Any]:
        callbacks = [c for c in trainer.callbacks if not isinstance(c, ModelCheckpoint)]
        return {
            "network": module.network.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "callbacks": [callback.state_dict() for callback in callbacks],
            "last validation": module.validations[-1],
        }

    def resume_is_exact(*make_callbacks: Callable[[], Callback], **module_options: Any) -> None:
        module = Tiny(seed=0, **module_options)
        every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        callbacks = [make() for make in make_callbacks]
        undisturbed = end(fit(module, *callbacks, every_epoch, max_epochs=4), module)
        for epoch in range(3):
            # New weights and a new random state: the right ones must come from the checkpoint.
            module = Tiny(seed=100 + epoch, **module_options)
            callbacks = [make() for make in make_callbacks]
            checkpoint = tmp_path / f"epoch={epoch}.ckpt"
            resumed = end(fit(module, *callbacks, max_epochs=4, ckpt_path=checkpoint), module)
            assert equal(resumed, undisturbed), f"interrupted after epoch {epoch}"

    return resume_is_exact
