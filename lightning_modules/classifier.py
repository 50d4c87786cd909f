"""Training of every architecture: loss, optimizer and learning rate."""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.captured_step import CapturedStep
from lightning_modules.distillation import Distillation
from lightning_modules.fitting import largest_fit
from lightning_modules.hyperparameters import (
    CompileMode,
    check_batch,
    check_checkpoint,
    check_hyperparameters,
)
from lightning_modules.losses import jensen_shannon
from lightning_modules.metrics import Batch, EvaluationModule, LossAndAccuracy, accuracy_per_image
from lightning_modules.networks import count_parameters
from lightning_modules.optimizers import (
    OptimizerName,
    Schedule,
    clip_gradients,
    learning_rate_factor,
    make_optimizer,
    optimizer_steps,
    refuse_fused,
)
from lightning_modules.sharpness import Ascent, Sharpness, frozen_statistics, uncached_casts

#: values of `compile` whose training step is a CUDA graph
CAPTURED = ("graph", "reduce-overhead", "max-autotune")


class ImageClassifier(EvaluationModule):
    """Trains a network from normalised images (N, 3, H, W) to logits (N, classes).

    The arguments of derived classes are flat, typed and primitive, because they are the command
    line's flags, the checkpoint's hyper-parameters and W&B's columns.
    """

    #: hyper-parameter of the network's size, and one step of it
    grows: ClassVar[str] = "base_width"
    grows_by: ClassVar[float] = 1
    #: hyper-parameters of the small version that `--quick` trains
    quick: ClassVar[dict[str, Any]] = {}
    #: whether a normalisation follows each convolution, which Muon needs
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
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | CompileMode = "auto",
    ) -> None:
        """
        Args:
            network: module that returns logits.
            lr: peak learning rate of SGD.
            momentum: momentum of SGD.
            nesterov: use Nesterov's momentum.
            weight_decay: L2 penalty, added to the gradient.
            decay_norm_bias: also decay normalisation parameters and biases.
            schedule: learning rate over optimizer steps.
            rising: share of training in which the rate rises (onecycle, warmup_onecycle,
                triangular).
            warmup: share of training for a linear warm-up (cosine, warmup_onecycle).
            warmup_lr: learning rate at the beginning of the warm-up.
            milestones: shares of training after which the step schedule multiplies lr by gamma.
            gamma: factor of the step schedule.
            triangle: factors of lr at the beginning and the end of the triangular schedule.
            bias_lr_factor: factor of lr, and divisor of weight_decay, for BatchNorm's shifts.
            optimizer: SGD for all parameters, or Muon for the filters of convolutions.
            muon_lr: peak learning rate of the filters with Muon.
            muon_momentum: momentum of the filters with Muon.
            muon_steps: Newton-Schulz steps per update with Muon.
            fused: compute SGD's step in one kernel; not in fp16, and not with Muon.
            label_smoothing: weight of the uniform distribution in the target.
            jsd_weight: weight of the Jensen-Shannon loss of data.policy augmix (12 in its paper).
            sharpness: minimise the loss of nearby weights (SAM or ASAM), at twice the cost.
            rho: distance of these weights: on CIFAR-10 0.05 for SAM, 0.5 for ASAM.
            channels_last: use channels-last memory format; auto lets run.py choose, else is false.
            compile: compile the network; graph, reduce-overhead, max-autotune use CUDA graphs.
        """
        super().__init__()
        self.save_hyperparameters(ignore="network")
        self.classes: int = self.hparams.get("classes", 10)
        check_hyperparameters(self.hparams, type(self).__name__, self.normalises)
        self.ascent = None if sharpness == "none" else Ascent(sharpness, rho)
        last = channels_last is True
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.compiled = compile not in (False, "auto", "graph")
        if self.compiled:
            # In place, so that no key of a checkpoint contains `_orig_mod`. Separately for each
            # size of a batch, because kernels for all sizes are slower.
            mode = "max-autotune-no-cudagraphs" if compile == "max-autotune" else None
            self.network.compile(dynamic=False, mode=mode)
        #: the training step as a CUDA graph, between `setup` and `teardown`
        self.captured: CapturedStep | None = None
        self.distillation: Distillation | None = None
        self.train_metric = LossAndAccuracy()
        self._soft_targets = False
        self._gradient_norm: Tensor | None = None

    def learn_from(self, distillation: Distillation) -> None:
        """Add a distillation to the loss; compile its teachers like the network."""
        distillation.prepare(self.memory_format, self.compiled)
        self.distillation = distillation

    def setup(self, stage: str) -> None:
        trainer, mode = self._trainer, self.hparams["compile"]
        if stage != "fit" or mode not in CAPTURED:
            return
        device = self.device if trainer is None else trainer.strategy.root_device
        alone = trainer is None or isinstance(trainer.strategy, SingleDeviceStrategy)
        if device.type == "cuda" and alone:
            self.captured = CapturedStep(self.network, self._forward_and_backward)
        else:
            rank_zero_info(
                f"--model.compile {mode}: training without CUDA graphs, which need one GPU; the "
                f"network is {'compiled' if self.compiled else 'not compiled'}"
            )

    def on_fit_start(self) -> None:
        if self.distillation is not None:  # after the conversion to the training precision
            self.distillation.to(self.device, next(self.network.parameters()).dtype)

    def teardown(self, stage: str) -> None:
        # Lightning now moves the parameters that a graph reads.
        self.captured = None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of images, or (N, V, C) of views (N, V, 3, H, W)."""
        if images.ndim == 5:
            return self(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return self.network(images.contiguous(memory_format=self.memory_format))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        check_batch(*batch, classes=self.classes)
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        self._soft_targets = targets.is_floating_point()
        if self.captured is None:
            loss, first_loss, correct = self._losses(images, targets)
        else:
            batches = 1 if self._trainer is None else self.trainer.accumulate_grad_batches
            begins = batch_idx % batches == 0
            loss, first_loss, correct = self.captured(images, targets, batches, begins)
        self.train_metric.update(first_loss, correct)
        return loss

    def _losses(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss to minimise, the loss at the weights, and accuracies there.

        With SAM the first is the loss at the perturbed weights, which the network keeps until
        `Ascent.descend`.
        """
        soft = self.distillation.ask(images) if self.distillation else None
        logits = self(images)
        loss = self.loss(logits, targets, soft)
        clean = logits if logits.ndim == 2 else logits[:, 0]
        correct = accuracy_per_image(clean.detach(), targets)
        if self.ascent is None:
            return loss, loss.detach(), correct
        self.ascent.climb(self.network, self._scaled(loss))
        with frozen_statistics(self.network), uncached_casts(images.device):
            return self.loss(self(images), targets, soft), loss.detach(), correct

    def _forward_and_backward(
        self, images: Tensor, targets: Tensor, batches: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `_losses` and their gradients for `CapturedStep`."""
        with uncached_casts(images.device):
            loss, first_loss, correct = self._losses(images, targets)
        with torch.autocast(images.device.type, enabled=False):
            self._scaled(loss / batches).backward()
        if self.ascent is not None:
            self.ascent.descend()
        return loss.detach(), first_loss, correct

    @property
    def _scaler(self) -> Any:
        """fp16's loss scaler, if there is one."""
        return getattr(self._trainer and self.trainer.precision_plugin, "scaler", None)

    def _scaled(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss) if self._scaler else loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self.captured is None:
            optimizer.zero_grad()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.captured is None:
            loss.backward(*args, **kwargs)

    def on_after_backward(self) -> None:
        if self.ascent is not None and self.captured is None:
            self.ascent.descend()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        last = self.trainer.is_last_batch or self.trainer.global_step + 1 == self.trainer.max_steps
        clipping = gradient_clip_val, gradient_clip_algorithm
        self._gradient_norm = clip_gradients(optimizer, *clipping, wants_norm=last)

    def loss(self, logits: Tensor, targets: Tensor, soft: Tensor | None = None) -> Tensor:
        """Return the cross-entropy, mixed with the distillation loss for `soft` targets.

        For AugMix's views (N, 3, C) it is the cross-entropy of the first one, plus the weighted
        Jensen-Shannon divergence of all.
        """
        clean = logits if logits.ndim == 2 else logits[:, 0]
        loss = F.cross_entropy(clean, targets, label_smoothing=self.hparams["label_smoothing"])
        if logits.ndim == 3:
            loss = loss + self.hparams["jsd_weight"] * jensen_shannon(*logits.unbind(1))
        if self.distillation is None or soft is None:
            return loss
        return self.distillation.loss(loss, logits, soft)

    def on_train_epoch_end(self) -> None:
        loss, accuracy = self.train_metric.compute()
        name = "train/acc_soft" if self._soft_targets else "train/acc"
        self.log_dict({"train/loss": loss, name: accuracy})
        self.train_metric.reset()
        if self._gradient_norm is not None:
            self.log("train/gradient_norm", self._gradient_norm)
        if self._scaler:
            self.log("train/loss_scale", self._scaler.get_scale())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        if hparams["fused"]:
            refuse_fused(self.trainer.precision)
        optimizer = make_optimizer(self.network, hparams)
        factor = learning_rate_factor(hparams, optimizer_steps(self.trainer))
        scheduler: Any = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = type(self).__name__
        # The sums of this epoch over all processes, because Lightning does not save metrics.
        with self.train_metric.sync_context():
            checkpoint["train_metric"] = dict(self.train_metric.metric_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_checkpoint(checkpoint, type(self).__name__, self.state_dict())
        # One process continues with the sums of all processes, and the others begin at 0.
        first = self._trainer is None or self.trainer.is_global_zero
        for name, value in checkpoint.get("train_metric", {}).items():
            setattr(self.train_metric, name, value.float().to(self.device) * first)

    @classmethod
    def parameters_with(cls, steps: int, arguments: dict[str, Any]) -> int:
        """Count the parameters if `grows` is `steps` * `grows_by`."""
        with torch.device("meta"):
            module = cls(**arguments | {cls.grows: steps * cls.grows_by, "compile": False})
        return count_parameters(module.network)

    def fitting_widths(self, budget: int) -> str | None:
        """Describe the largest `grows` that fits a budget; None if nothing fits."""
        fit = largest_fit(partial(self.parameters_with, arguments=dict(self.hparams)), budget)
        return fit and f"{self.grows} <= {fit.steps * self.grows_by:g} fits ({fit.parameters:,})"
