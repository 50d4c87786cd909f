"""What every architecture shares: loss, metrics, optimizer and learning rate schedule."""

from functools import partial
from typing import Any, ClassVar, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.fitting import largest_fit
from lightning_modules.losses import jensen_shannon
from lightning_modules.metrics import LossAndAccuracy, accuracy_per_image
from lightning_modules.networks import count_parameters
from lightning_modules.optimizers import (
    OptimizerName,
    Schedule,
    learning_rate_factor,
    make_optimizer,
    optimizer_steps,
    refuse_fused,
)
from lightning_modules.sharpness import Ascent, Sharpness, frozen_statistics

Batch = tuple[Tensor, Tensor]


def _check(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value}")


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


class ImageClassifier(LightningModule):
    """A network that maps normalised images (N, 3, 32, 32) to logits (N, 10), and its training.

    Architectures derive from it with flat, typed, primitive arguments: these are the command line's
    flags, the checkpoint's hyper-parameters and W&B's columns at once.
    """

    #: the hyper-parameter that decides how large the network is
    grows: ClassVar[str] = "base_width"
    #: what of it is one step of width
    grows_by: ClassVar[float] = 1
    #: hyper-parameters of the small version that `--quick` trains
    quick: ClassVar[dict[str, Any]] = {}
    #: whether a normalisation follows each convolution, without which Muon would fix its scale
    normalises: ClassVar[bool] = False

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
        triangle: tuple[float, float] = (0.2, 0.07),
        bias_lr_factor: float = 1.0,
        optimizer: OptimizerName = "sgd",
        muon_lr: float = 0.24,
        muon_momentum: float = 0.6,
        muon_steps: int = 5,
        fused: bool = False,
        label_smoothing: float = 0.0,
        jsd_weight: float = 0.0,
        sharpness: Sharpness = "none",
        rho: float = 0.05,
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
            rising: share of training in which the one-cycle and triangular schedules rise.
            warmup: share of training spent in a linear warm-up (cosine, warmup_onecycle).
            warmup_lr: learning rate at which the warm-up begins.
            milestones: shares of training from which the step schedule multiplies the rate by
                gamma; the defaults are those of Zagoruyko & Komodakis (2016).
            gamma: that factor.
            triangle: factors of lr at which the triangular schedule begins and ends.
            bias_lr_factor: how many times lr the shifts of BatchNorm learn with; their weight decay
                is as many times smaller, so that they shrink no faster.
            optimizer: SGD for everything, or Muon for the filters of convolutions; that is for
                networks in which a normalisation follows each of them.
            muon_lr: peak learning rate of the filters under Muon.
            muon_momentum: momentum of the filters under Muon.
            muon_steps: Newton-Schulz steps of an update under Muon.
            fused: take SGD's step in one kernel; neither in fp16 nor with clipping.
            label_smoothing: weight of the uniform distribution in the target.
            jsd_weight: weight of the Jensen-Shannon divergence between the three views that
                data.policy augmix makes; 12 in its paper.
            sharpness: take the gradient where the loss near the weights is largest, by SAM or ASAM,
                at twice the cost of a step.
            rho: how near that is: 0.05 is SAM's on CIFAR-10, 0.5 ASAM's.
            channels_last: keep weights and images in channels-last memory format.
            compile: compile the network with torch.compile.
        """
        super().__init__()
        _check("lr", lr, lr > 0, "above 0")
        _check("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        _check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        _check_choice("schedule", schedule, Schedule)
        _check("rising", rising, 0 <= rising < 1, "in [0, 1), a share of training")
        if rising == 0 and schedule in ("onecycle", "warmup_onecycle"):
            raise ValueError(f"rising must be above 0 where schedule is {schedule}, got {rising}")
        _check("warmup", warmup, 0 <= warmup < 1, "in [0, 1), a share of training")
        _check("warmup_lr", warmup_lr, warmup_lr >= 0, "0 or more")
        if [*milestones] != sorted(x for x in milestones if 0 < x < 1):
            raise ValueError(f"milestones must be rising shares of training, got {milestones}")
        _check("gamma", gamma, 0 < gamma <= 1, "above 0 and at most 1")
        if not all(0 <= factor <= 1 for factor in triangle):
            raise ValueError(f"triangle must be two factors in [0, 1], got {triangle}")
        _check("bias_lr_factor", bias_lr_factor, bias_lr_factor > 0, "above 0")
        _check_choice("optimizer", optimizer, OptimizerName)
        if optimizer == "muon" and not self.normalises:
            raise ValueError(
                f"optimizer must be 'sgd' for {type(self).__name__}, got 'muon', which needs a "
                "normalisation behind each convolution"
            )
        if optimizer == "muon" and fused:
            raise ValueError("fused must be False where optimizer is 'muon', got True")
        _check("muon_lr", muon_lr, muon_lr > 0, "above 0")
        _check("muon_momentum", muon_momentum, 0 <= muon_momentum < 1, "in [0, 1)")
        _check("muon_steps", muon_steps, muon_steps >= 1, "1 or more")
        _check("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")
        _check("jsd_weight", jsd_weight, jsd_weight >= 0, "0 or more")
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0")
        self.ascent = None if sharpness == "none" else Ascent(sharpness, rho)
        self.save_hyperparameters(ignore="network")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        if compile:
            # In place, so that no key of a checkpoint ever says `_orig_mod`.
            self.network.compile()
        self.train_metric = LossAndAccuracy()
        self.eval_metrics: dict[str, LossAndAccuracy] = {}
        self._soft_targets = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of normalised images (N, 3, 32, 32), or of views of them.

        Those are (N, views, 3, 32, 32), and their logits (N, views, 10).
        """
        if images.ndim == 5:
            return self(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self(images)
        loss = self.loss(logits, targets)
        self._soft_targets = targets.is_floating_point()
        clean = logits if logits.ndim == 2 else logits[:, 0]
        self.train_metric.update(loss, accuracy_per_image(clean, targets))
        if self.ascent is None:
            return loss
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self.ascent.climb(self.network, scaler.scale(loss) if scaler else loss)
        with frozen_statistics(self.network):
            return self.loss(self(images), targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy; of three views (N, 3, 10) the first one's, and how far they diverge."""
        if logits.ndim == 3:
            divergence = self.hparams["jsd_weight"] * jensen_shannon(*logits.unbind(1))
            return self.loss(logits[:, 0], targets) + divergence
        return F.cross_entropy(logits, targets, label_smoothing=self.hparams["label_smoothing"])

    def on_after_backward(self) -> None:
        if self.ascent is not None:
            self.ascent.descend()

    def on_train_epoch_end(self) -> None:
        loss, accuracy = self.train_metric.compute()
        name = "train/acc_soft" if self._soft_targets else "train/acc"
        self.log_dict({"train/loss": loss, name: accuracy})
        self.train_metric.reset()

    def evaluate(self, network: nn.Module, batch: Batch, suffix: str) -> None:
        """Add one batch of validation images, or test images, to loss and accuracy of `network`.

        They are logged at the epoch's end as `val/loss{suffix}` and `val/acc{suffix}`: callbacks
        that average weights bring theirs beside the module's own. The loss has no label smoothing.
        """
        images, labels = batch
        logits = network(images.contiguous(memory_format=self.memory_format)).float()
        if suffix not in self.eval_metrics:
            self.eval_metrics[suffix] = LossAndAccuracy().to(self.device)
        self.eval_metrics[suffix].update(
            F.cross_entropy(logits, labels), accuracy_per_image(logits, labels)
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(self.network, batch, "")

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """For `Trainer.test`; `experiments.inference` has more ways to look at a test image."""
        self.evaluate(self.network, batch, "")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        for suffix, metric in self.eval_metrics.items():
            loss, accuracy = metric.compute()
            self.log_dict({f"{split}/loss{suffix}": loss, f"{split}/acc{suffix}": accuracy})
        self.eval_metrics = {}

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits in 32 bits, whatever the precision they were computed in."""
        return self(batch[0]).float()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        if hparams["fused"]:
            refuse_fused(self.trainer.precision, self.trainer.gradient_clip_val)
        optimizer = make_optimizer(self.network, hparams)
        factor = learning_rate_factor(
            hparams["schedule"],
            total_steps=optimizer_steps(self.trainer),
            rising=hparams["rising"],
            warmup=hparams["warmup"],
            warmup_start=hparams["warmup_lr"] / hparams["lr"],
            milestones=hparams["milestones"],
            gamma=hparams["gamma"],
            triangle=hparams["triangle"],
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
            setattr(self.train_metric, name, value.float().to(self.device) * first)

    @classmethod
    def parameters_with(cls, steps: int, arguments: dict[str, Any]) -> int:
        """Parameters with these arguments, but with `grows` at `steps` times `grows_by`."""
        with torch.device("meta"):
            module = cls(**arguments | {cls.grows: steps * cls.grows_by, "compile": False})
        return count_parameters(module.network)

    def fitting_widths(self, budget: int) -> str | None:
        """The largest `grows` that fits a budget, and its parameters, in words."""
        fit = largest_fit(partial(self.parameters_with, arguments=dict(self.hparams)), budget)
        return fit and f"{self.grows} <= {fit.steps * self.grows_by:g} fits ({fit.parameters:,})"
