"""Optimizers, and learning rates as pure functions of the step."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_modules.muon import MuonSGD

OptimizerName = Literal["sgd", "muon"]
Schedule = Literal["cosine", "onecycle", "warmup_onecycle", "step", "triangular"]

# The defaults of torch.optim.lr_scheduler.OneCycleLR, which SAMResNet uses: the rate starts at 1/25
# of its maximum and ends at 1/10,000 of its start.
ONECYCLE_START = 1 / 25
ONECYCLE_END = ONECYCLE_START / 1e4


def parameter_groups(
    network: nn.Module, weight_decay: float, decay_norm_bias: bool
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: two if normalisation and biases do not decay.

    These are the parameters of fewer than two dimensions, as in He et al., "Bag of Tricks for Image
    Classification" (2019).
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if decay_norm_bias:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def set_apart(
    groups: list[dict[str, Any]], parameters: Iterable[Tensor], **settings: Any
) -> list[dict[str, Any]]:
    """Move parameters to new groups with other settings, after the remaining groups."""
    chosen = {id(p) for p in parameters}
    rest, apart = [], []
    for group in groups:
        rest.append(group | {"params": [p for p in group["params"] if id(p) not in chosen]})
        moved = [p for p in group["params"] if id(p) in chosen]
        apart.append(group | {"params": moved} | settings)
    return [group for group in rest + apart if group["params"]]


def batch_norm_shifts(network: nn.Module) -> list[Tensor]:
    """Return the biases of BatchNorm."""
    return [m.bias for m in network.modules() if isinstance(m, _BatchNorm) and m.bias is not None]


def filters(network: nn.Module) -> list[Tensor]:
    """Return the weights of convolutions."""
    return [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]


#: hyper-parameters whose values a resumed run takes from the checkpoint's optimizer
OPTIMIZER_HPARAMS = (
    *("lr", "momentum", "nesterov", "weight_decay", "decay_norm_bias", "bias_lr_factor"),
    *("optimizer", "muon_lr", "muon_momentum", "muon_steps", "fused"),
)


def make_optimizer(network: nn.Module, hparams: Mapping[str, Any]) -> Optimizer:
    """Return SGD or Muon by the hyper-parameters of `ImageClassifier`."""
    lr, factor = hparams["lr"], hparams["bias_lr_factor"]
    decay = hparams["weight_decay"]
    groups = parameter_groups(network, decay, hparams["decay_norm_bias"])
    if factor != 1:
        shifts_decay = decay / factor if hparams["decay_norm_bias"] else 0.0
        groups = set_apart(
            groups, batch_norm_shifts(network), lr=factor * lr, weight_decay=shifts_decay
        )
    settings = {"lr": lr, "momentum": hparams["momentum"], "nesterov": hparams["nesterov"]}
    if hparams["optimizer"] == "sgd":
        return torch.optim.SGD(groups, **settings, fused=hparams["fused"] or None)
    muon = {
        "lr": hparams["muon_lr"],
        "momentum": hparams["muon_momentum"],
        "steps": hparams["muon_steps"],
        "orthogonal": True,
    }
    compiled = hparams.get("compile") in (True, "reduce-overhead", "max-autotune")
    return MuonSGD(set_apart(groups, filters(network), **muon), **settings, compiled=compiled)


def clip_gradients(
    optimizer: Optimizer, limit: float | None, algorithm: str | None, wants_norm: bool
) -> Tensor | None:
    """Clip gradients by norm or by value, without waiting for the GPU.

    Lightning does not clip with fused optimizers. Returns the norm before clipping if clipping
    computes it or `wants_norm` is true, else None.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if limit and algorithm != "value":
        return nn.utils.clip_grad_norm_(parameters, limit)
    norm = None
    if wants_norm:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit:
        nn.utils.clip_grad_value_(parameters, limit)
    return norm


def optimizer_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps of the whole training.

    Raises MisconfigurationException if only the time limits it, or if it has no steps.
    """
    steps = trainer.estimated_stepping_batches
    if not 1 <= steps < math.inf:
        raise MisconfigurationException(
            "schedules need a length of training of 1 optimizer step or more: got max_epochs "
            f"{trainer.max_epochs}, max_steps {trainer.max_steps} and limit_train_batches "
            f"{trainer.limit_train_batches}"
        )
    return int(steps)


def refuse_fused(precision: str) -> None:
    """Raise MisconfigurationException for a fused optimizer in fp16.

    It unscales gradients and skips steps itself, so clipping would use scaled gradients, and
    averages of weights would count skipped steps.
    """
    if precision == "16-mixed":
        raise MisconfigurationException(
            "fused must be False in 16-mixed precision, got True: set --model.fused false, or "
            "--trainer.precision bf16-mixed"
        )


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _warmup(step: int, warmup_steps: float, start: float) -> float:
    return start + (1 - start) * step / warmup_steps


def cosine(step: int, total_steps: int, warmup_steps: float, warmup_start: float) -> float:
    """Fall along a cosine to zero (Loshchilov & Hutter 2017) after a warm-up."""
    if step < warmup_steps:
        return _warmup(step, warmup_steps, warmup_start)
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return _cosine_between(1.0, 0.0, min(1.0, progress))


def onecycle(step: int, total_steps: int, rising: float) -> float:
    """Return the rates of torch's OneCycleLR with cosines (Smith & Topin 2018).

    The momentum does not change, because both papers state one value.
    """
    peak = rising * total_steps - 1
    if step < peak:
        return _cosine_between(ONECYCLE_START, 1.0, step / peak)
    progress = (step - peak) / (total_steps - 1 - peak)
    return _cosine_between(1.0, ONECYCLE_END, min(1.0, progress))


def warmup_onecycle(
    step: int, total_steps: int, rising: float, warmup_steps: float, warmup_start: float
) -> float:
    """Return SAMResNet's schedule: OneCycle with a linear warm-up in its first steps.

    As in the authors' code, the cycle also begins at the first step and peaks at `rising` of all
    steps. So the rate drops to the cycle's rate when the warm-up ends.
    """
    if step < warmup_steps:
        return _warmup(step, warmup_steps, warmup_start)
    return onecycle(step, total_steps, rising)


def step_decay(step: int, total_steps: int, milestones: Sequence[float], gamma: float) -> float:
    """Multiply by `gamma` at each milestone, like torch's MultiStepLR."""
    return gamma ** sum(step >= milestone * total_steps for milestone in milestones)


def triangular(step: int, total_steps: int, rising: float, start: float, end: float) -> float:
    """Rise linearly from `start` to 1, then fall linearly to `end` (Page 2018).

    The peak is at `rising` of all steps. With `rising` 0 the rate only falls.
    """
    peak = rising * total_steps
    if step < peak:
        return start + (1 - start) * step / peak
    return 1 + (end - 1) * min(1.0, (step - peak) / (total_steps - peak))


def learning_rate_factor(hparams: Mapping[str, Any], total_steps: int) -> Callable[[int], float]:
    """Return the factor of the peak rate at each optimizer step, for `LambdaLR`.

    All schedules are functions of the step alone, so that a callback can override the rate for a
    while. `hparams` are from `ImageClassifier`.
    """
    rising, (start, end) = hparams["rising"], hparams["triangle"]
    warmup = {
        "warmup_steps": hparams["warmup"] * total_steps,
        "warmup_start": hparams["warmup_lr"] / hparams["lr"],
    }
    schedules: dict[Schedule, Callable[..., float]] = {
        "cosine": partial(cosine, **warmup),
        "onecycle": partial(onecycle, rising=rising),
        "warmup_onecycle": partial(warmup_onecycle, rising=rising, **warmup),
        "step": partial(step_decay, milestones=hparams["milestones"], gamma=hparams["gamma"]),
        "triangular": partial(triangular, rising=rising, start=start, end=end),
    }
    return partial(schedules[hparams["schedule"]], total_steps=total_steps)
