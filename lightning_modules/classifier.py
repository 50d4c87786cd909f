"""What every architecture shares: loss, metrics, optimizer and learning rate schedule."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from lightning_modules.optimizers import Schedule, learning_rate_factor, parameter_groups

Batch = tuple[Tensor, Tensor]


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, in one update and without a synchronisation."""

    loss: Tensor
    correct: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "correct", "images"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, correct: Tensor) -> None:
        """Add a batch: its mean loss, and for each image (N,) how right its prediction was."""
        self.loss += mean_loss.detach() * len(correct)
        self.correct += correct.sum()
        self.images += len(correct)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy over all batches since the last reset."""
        return (self.loss / self.images).float(), (self.correct / self.images).float()


def accuracy_per_image(logits: Tensor, targets: Tensor) -> Tensor:
    """The target's weight on the predicted class, float (N,), of logits (N, C).

    For int64 labels (N,) that is 1 where the prediction is right. For soft targets (N, C), as MixUp
    makes them, it is the share of the target that the prediction names, which is how a training
    accuracy under mixing is counted (Zhang et al. 2018).
    """
    predicted = logits.argmax(dim=1)
    if targets.is_floating_point():
        return targets.gather(1, predicted[:, None]).squeeze(1)
    return (predicted == targets).float()


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _check(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value}")


class ImageClassifier(LightningModule):
    """A network that maps normalised images (N, 3, 32, 32) to logits (N, 10), and its training.

    Architectures derive from it with flat, typed, primitive arguments: these are the command line's
    flags, the checkpoint's hyper-parameters and W&B's columns at once.
    """

    #: the hyper-parameter that decides how large the network is
    grows: ClassVar[str] = "base_width"
    #: hyper-parameters of the small version that `--quick` trains
    quick: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        decay_norm_bias: bool = True,
        schedule: Schedule = "cosine",
        rising: float = 0.4,
        warmup: float = 0.0,
        warmup_lr: float = 0.001,
        milestones: tuple[float, ...] = (0.3, 0.6, 0.8),
        gamma: float = 0.2,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        """
        Args:
            network: the plain module, logits out.
            lr: peak learning rate of SGD.
            momentum: momentum of SGD.
            nesterov: use Nesterov's momentum.
            weight_decay: L2 penalty added to the gradient.
            decay_norm_bias: also decay normalisation parameters and biases.
            schedule: learning rate over optimizer steps.
            rising: share of training in which the one-cycle schedules rise.
            warmup: share of training spent in a linear warm-up (cosine, warmup_onecycle).
            warmup_lr: learning rate at which the warm-up begins.
            milestones: shares of training from which the step schedule multiplies the rate by
                gamma; the defaults are those of Zagoruyko & Komodakis (2016).
            gamma: that factor.
            label_smoothing: weight of the uniform distribution in the target.
            channels_last: keep weights and images in channels-last memory format.
            compile: compile the network with torch.compile.
        """
        super().__init__()
        _check("lr", lr, lr > 0, "above 0")
        _check("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        _check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        _check("rising", rising, 0 < rising < 1, "between 0 and 1, a share of training")
        _check("warmup", warmup, 0 <= warmup < 1, "in [0, 1), a share of training")
        _check("warmup_lr", warmup_lr, warmup_lr >= 0, "0 or more")
        if [*milestones] != sorted(x for x in milestones if 0 < x < 1):
            raise ValueError(f"milestones must be rising shares of training, got {milestones}")
        _check("gamma", gamma, 0 < gamma <= 1, "above 0 and at most 1")
        _check("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0")
        self.save_hyperparameters(ignore="network")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        if compile:
            # In place, so that no key of a checkpoint ever says `_orig_mod`.
            self.network.compile()
        self.train_metric = LossAndAccuracy()
        self.val_metrics: dict[str, LossAndAccuracy] = {}
        self._soft_targets = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of normalised images (N, 3, 32, 32)."""
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.hparams["label_smoothing"])
        self._soft_targets = targets.is_floating_point()
        self.train_metric.update(loss, accuracy_per_image(logits, targets))
        return loss

    def on_train_epoch_end(self) -> None:
        loss, accuracy = self.train_metric.compute()
        name = "train/acc_soft" if self._soft_targets else "train/acc"
        self.log_dict({"train/loss": loss, name: accuracy})
        self.train_metric.reset()

    def evaluate(self, network: nn.Module, batch: Batch, suffix: str) -> None:
        """Add one validation batch to the loss and accuracy of `network`.

        They are logged at the epoch's end as `val/loss{suffix}` and `val/acc{suffix}`: callbacks
        that average weights bring theirs beside the module's own. The loss has no label smoothing.
        """
        images, labels = batch
        logits = network(images.contiguous(memory_format=self.memory_format)).float()
        if suffix not in self.val_metrics:
            self.val_metrics[suffix] = LossAndAccuracy().to(self.device)
        self.val_metrics[suffix].update(
            F.cross_entropy(logits, labels), accuracy_per_image(logits, labels)
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(self.network, batch, "")

    def on_validation_epoch_end(self) -> None:
        for suffix, metric in self.val_metrics.items():
            loss, accuracy = metric.compute()
            self.log_dict({f"val/loss{suffix}": loss, f"val/acc{suffix}": accuracy})
        self.val_metrics = {}

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits in 32 bits, whatever the precision they were computed in."""
        return self(batch[0]).float()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        optimizer = torch.optim.SGD(
            parameter_groups(self.network, hparams["weight_decay"], hparams["decay_norm_bias"]),
            lr=hparams["lr"],
            momentum=hparams["momentum"],
            nesterov=hparams["nesterov"],
        )
        factor = learning_rate_factor(
            hparams["schedule"],
            total_steps=int(self.trainer.estimated_stepping_batches),
            rising=hparams["rising"],
            warmup=hparams["warmup"],
            warmup_start=hparams["warmup_lr"] / hparams["lr"],
            milestones=hparams["milestones"],
            gamma=hparams["gamma"],
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = type(self).__name__
        # What an epoch has summed up so far, in all processes: Lightning leaves a metric out of its
        # checkpoints.
        with self.train_metric.sync_context():
            checkpoint["train_metric"] = dict(self.train_metric.metric_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network: MisconfigurationException, in one line."""
        ours, theirs = type(self).__name__, checkpoint.get("architecture")
        if theirs != ours:
            raise MisconfigurationException(f"the checkpoint is of {theirs}, the network is {ours}")
        shapes = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if found != shapes:
            name = min(n for n in shapes.keys() | found.keys() if shapes.get(n) != found.get(n))
            raise MisconfigurationException(
                f"the checkpoint is of a {theirs} with other hyper-parameters: {name} has shape "
                f"{found.get(name)} there and {shapes.get(name)} here"
            )
        # One process goes on with the sums of all; the others begin at nothing.
        first = self._trainer is None or self.trainer.is_global_zero
        for name, value in checkpoint.get("train_metric", {}).items():
            setattr(self.train_metric, name, value.to(self.device) * first)

    def fitting_widths(self, budget: int) -> str | None:
        """The largest whole `grows`, up to the present one, that fits a budget, in words."""
        arguments = dict(self.hparams) | {"compile": False}
        for value in range(int(arguments[self.grows]), 0, -1):
            with torch.device("meta"):
                smaller = type(self)(**arguments | {self.grows: value})
            count = count_parameters(smaller.network)
            if count <= budget:
                return f"{self.grows} <= {value} fits ({count:,})"
        return None
