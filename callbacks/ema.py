"""Exponential moving average of the weights, and the validation of averages."""

from abc import ABC, abstractmethod
from copy import deepcopy
from itertools import chain
from typing import Any, ClassVar, cast, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from callbacks.lookahead import HasNetwork, Lookahead


class Average(Callback, ABC):
    """An average of the weights, validated during fit after the network.

    The module's `evaluate` adds a batch to the epoch's `val/loss{suffix}` and `val/acc{suffix}`.
    """

    #: ending of its metrics, as in `val/acc_ema`
    suffix: ClassVar[str]

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    @property
    @abstractmethod
    def network(self) -> nn.Module | None:
        """The averaged network in evaluation mode; None before the first update."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Outside fit, the network may come from another checkpoint than this average.
        if self.network is None or trainer.state.fn != TrainerFn.FITTING:
            return
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            cast(Any, pl_module).evaluate(self.network, batch, self.suffix)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Used when training starts: the network is not on its device yet, and has no optimizer.
        self._restored = state_dict


def ema_decay(updates: int, decay: float, warmup: bool) -> float:
    """Return the decay of the next update after `updates` updates.

    With warm-up it is (1 + updates) / (10 + updates) until that reaches `decay`, so that the
    average soon forgets the initial weights (as in TensorFlow's ExponentialMovingAverage).
    """
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


@torch.no_grad()
def ema_update(averages: list[Tensor], tensors: list[Tensor], decay: float) -> None:
    """Set each average to decay * average + (1 - decay) * tensor, in place."""
    torch._foreach_lerp_(averages, tensors, 1 - decay)


@final
class EMA(Average):
    """Exponential moving average of the weights, updated after every step.

    In a checkpoint, `callbacks.EMA.average` is the averaged network's `state_dict`.
    """

    suffix = "_ema"

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        """
        Args:
            decay: share of the average that a step keeps.
            warmup: begin with a smaller decay, (1 + n) / (10 + n) after n updates.
        """
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        # A number in Python, because every step would wait for a counter on the GPU.
        self.updates = 0
        self._average: nn.Module | None = None
        self._floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._integers: tuple[list[Tensor], list[Tensor]] = ([], [])

    @property
    def network(self) -> nn.Module | None:
        return self._average if self.updates else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it undeclared
        later = callbacks[callbacks.index(self) :]
        if any(isinstance(callback, Lookahead) for callback in later):
            raise MisconfigurationException(
                "Lookahead must come before EMA in the Trainer's callbacks, got it after: EMA "
                "would average weights that Lookahead replaces after the same step"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = cast(HasNetwork, pl_module).network
        # Not earlier: only now is the network on its device and restored.
        self._average = deepcopy(network).eval().requires_grad_(False)
        self.updates = 0
        if self._restored:
            self.updates = self._restored["updates"]
            self._average.load_state_dict(self._restored["average"])
            self._restored = {}
        averages = chain(self._average.parameters(), self._average.buffers())
        tensors = chain(network.parameters(), network.buffers())
        pairs = list(zip(averages, tensors, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        integers = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._floats = [a for a, _ in floats], [t for _, t in floats]
        self._integers = [a for a, _ in integers], [t for _, t in integers]
        self._hook = trainer.optimizers[0].register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        ema_update(*self._floats, ema_decay(self.updates, self.decay, self.warmup))
        if self._integers[0]:
            torch._foreach_copy_(*self._integers)
        self.updates += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Each process averages the BatchNorm statistics of its own batches. All processes validate
        # and save the statistics of rank 0, as DistributedDataParallel does for the network.
        if self._average is None or trainer.world_size == 1:
            return
        buffers = list(self._average.buffers())
        received = trainer.strategy.broadcast([buffer.cpu() for buffer in buffers])
        for buffer, value in zip(buffers, received, strict=True):
            buffer.copy_(value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()
        self.on_validation_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        if self._average is None:
            return self._restored
        return {"updates": self.updates, "average": self._average.state_dict()}
