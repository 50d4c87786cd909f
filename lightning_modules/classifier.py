"""The training of every architecture: loss, metrics, optimizer and learning rate schedule."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.captured_step import CapturedStep
from lightning_modules.distillation import Distillation
from lightning_modules.fitting import largest_fit
from lightning_modules.hyperparameters import CompileMode, check_hyperparameters
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
from lightning_modules.sharpness import Ascent, Sharpness, frozen_statistics, uncached_casts

Batch = tuple[Tensor, Tensor]

#: modes whose training step is a CUDA graph
CAPTURED = ("graph", "reduce-overhead", "max-autotune")


@contextmanager
def borrowed(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """Give `network` the parameters and buffers of its copy `other`, which has them meanwhile.

    A compiled network evaluates averages of its weights this way, and is not compiled again.
    """
    mine = chain(network.parameters(), network.buffers())
    pairs = list(zip(mine, chain(other.parameters(), other.buffers()), strict=True))

    def swap() -> None:
        for a, b in pairs:
            a.data, b.data = b.data, a.data

    swap()
    try:
        yield
    finally:
        swap()


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
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | CompileMode = "auto",
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
            milestones: shares of training after which the step schedule multiplies the rate by
                gamma; the defaults are from Zagoruyko & Komodakis (2016).
            gamma: that factor.
            triangle: factors of lr at which the triangular schedule begins and ends.
            bias_lr_factor: how many times lr the shifts of BatchNorm learn with; their weight decay
                is as many times smaller, so that they shrink no faster.
            optimizer: SGD for everything, or Muon for the filters of convolutions; that is for
                networks in which a normalisation follows each of them.
            muon_lr: peak learning rate of the filters under Muon.
            muon_momentum: momentum of the filters under Muon.
            muon_steps: Newton-Schulz steps of an update under Muon.
            fused: take SGD's step in one kernel; not in fp16.
            label_smoothing: weight of the uniform distribution in the target.
            jsd_weight: weight of the Jensen-Shannon divergence between the three views that
                data.policy augmix makes; 12 in its paper.
            sharpness: take the gradient where the loss near the weights is largest, by SAM or ASAM,
                at twice the cost of a step.
            rho: how near that is: 0.05 is SAM's on CIFAR-10, 0.5 ASAM's.
            channels_last: keep weights and images in channels-last memory format; auto lets run.py
                choose by the machine, and is false elsewhere.
            compile: compile the network with torch.compile. With graph, reduce-overhead and
                max-autotune one GPU takes forward and backward pass as one CUDA graph: of the
                network's own kernels, of compiled ones, and of compiled ones with the longest
                search. On a CPU and on several devices these three do as false, true and true.
                auto lets run.py choose by the machine, and is false elsewhere.
        """
        super().__init__()
        self.save_hyperparameters(ignore="network")
        check_hyperparameters(self.hparams, type(self).__name__, self.normalises)
        self.ascent = None if sharpness == "none" else Ascent(sharpness, rho)
        last = channels_last is True
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        #: whether the network itself is compiled
        self.compiled = compile not in (False, "auto", "graph")
        if self.compiled:
            # In place, so that no key of a checkpoint ever says `_orig_mod`. For each size of a
            # batch, because kernels for any size are slower.
            mode = "max-autotune-no-cudagraphs" if compile == "max-autotune" else None
            self.network.compile(dynamic=False, mode=mode)
        #: the training step as a CUDA graph, between `setup` and `teardown`
        self.captured: CapturedStep | None = None
        self.distillation: Distillation | None = None
        self.train_metric = LossAndAccuracy()
        self.eval_metrics: dict[str, LossAndAccuracy] = {}
        self._soft_targets = False
        self._largest_batch = 0  # of evaluation

    def learn_from(self, distillation: Distillation) -> None:
        """Train with the loss of a distillation; its teachers are compiled if the student is."""
        self.distillation = distillation
        for teacher in distillation.teachers:
            teacher.to(memory_format=self.memory_format)
            if self.compiled:
                teacher.compile(dynamic=False)

    def setup(self, stage: str) -> None:
        trainer = self._trainer
        device = self.device if trainer is None else trainer.strategy.root_device
        if stage == "fit" and self.distillation is not None:
            for teacher in self.distillation.teachers:
                teacher.to(device)
        mode = self.hparams["compile"]
        if stage != "fit" or mode not in CAPTURED:
            return
        alone = trainer is None or isinstance(trainer.strategy, SingleDeviceStrategy)
        if device.type == "cuda" and alone:
            self.captured = CapturedStep(self.network, self._forward_and_backward)
        else:
            rank_zero_info(
                f"--model.compile {mode}: training without CUDA graphs, which need one GPU; the "
                f"network is {'compiled' if self.compiled else 'not compiled'}"
            )

    def teardown(self, stage: str) -> None:
        # Training has ended, and Lightning moves the parameters that a graph reads.
        self.captured = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of normalised images (N, 3, 32, 32), or of views of them.

        Those are (N, views, 3, 32, 32), and their logits (N, views, 10).
        """
        if images.ndim == 5:
            return self(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return self.network(images.contiguous(memory_format=self.memory_format))

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
        """The loss to minimise, and at the weights the loss and each image's accuracy.

        With SAM the first is the loss at the perturbed weights, which the network has until
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
        """A whole step for `CapturedStep`, as Lightning takes it, with the results of `_losses`."""
        with uncached_casts(images.device):
            loss, first_loss, correct = self._losses(images, targets)
        with torch.autocast(images.device.type, enabled=False):
            self._scaled(loss / batches).backward()
        if self.ascent is not None:
            self.ascent.descend()
        return loss.detach(), first_loss, correct

    def _scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale of fp16's loss scaler, if there is one."""
        plugin = None if self._trainer is None else self.trainer.precision_plugin
        scaler = getattr(plugin, "scaler", None)
        return scaler.scale(loss) if scaler else loss

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
        """Clip as Lightning does, but with fused optimizers too; nothing waits for the GPU."""
        if not gradient_clip_val:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def loss(self, logits: Tensor, targets: Tensor, soft: Tensor | None = None) -> Tensor:
        """Cross-entropy of logits (N, 10); mixed with the distillation loss for `soft` targets.

        Of AugMix's three views (N, 3, 10) it is the cross-entropy of the first, plus the weighted
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

    def evaluate(self, network: nn.Module, batch: Batch, suffix: str) -> None:
        """Add one batch to the loss and the accuracy of `network`, this one's or a copy of it.

        They are logged at the epoch's end as `val/loss{suffix}` and `val/acc{suffix}`, also those
        of the averages that callbacks evaluate. The loss has no label smoothing.
        """
        images, labels = batch
        with nullcontext() if network is self.network else borrowed(self.network, network):
            logits = self._evaluated(images)
        if suffix not in self.eval_metrics:
            self.eval_metrics[suffix] = LossAndAccuracy().to(self.device)
        self.eval_metrics[suffix].update(
            F.cross_entropy(logits, labels), accuracy_per_image(logits, labels)
        )

    def _evaluated(self, images: Tensor) -> Tensor:
        """Logits in 32 bits, of a compiled network in batches of one size."""
        count = len(images)
        self._largest_batch = max(self._largest_batch, count)
        missing = self._largest_batch - count
        if self.compiled and missing:
            # Without this the last batch of a data set would be compiled for its size.
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        return self(images)[:count].float()

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
        return self._evaluated(batch[0])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        if hparams["fused"]:
            refuse_fused(self.trainer.precision)
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
