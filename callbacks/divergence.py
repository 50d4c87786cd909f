"""Ends a training whose loss or average is not finite."""

from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from callbacks.ema import Average
from callbacks.lookahead import Lookahead
from callbacks.snapshot import is_finite

OnNaN = Literal["stop", "rollback"]


class DivergedError(Exception):
    """The training loss or an average of the weights is NaN or infinite."""


@final
class Divergence(Callback):
    """Ends training when the loss is NaN or infinite, at most 50 steps later.

    With `rollback` it restores weights, averages and the optimizer from the last checkpoint, halves
    the learning rate and continues, at most twice. The data order and the schedule are not rewound.
    A step that the fp16 scaler skips does not count. If only an average of the weights is not
    finite, training ends after validation.
    """

    #: batches between two checks of the loss
    EVERY = 25
    MOST_ROLLBACKS = 2
    #: with a smaller loss scale, the scale does not cause an overflow of fp16; it begins at 65,536
    LEAST_SCALE = 1

    def __init__(self, dirpath: str, on_nan: OnNaN = "stop") -> None:
        """
        Args:
            dirpath: folder of `last.ckpt`.
            on_nan: end the training, or restore the last checkpoint.
        """
        if on_nan not in ("stop", "rollback"):
            raise ValueError(f"on_nan must be 'stop' or 'rollback', got {on_nan!r}")
        self.path = Path(dirpath) / "last.ckpt"
        self.on_nan = on_nan
        #: optimizer steps of the rollbacks
        self.rollbacks: list[int] = []
        self._sum: Tensor | None = None  # of the losses since the last check
        self._seen: Tensor | None = None  # the sum before it, on its way to the host
        self._arrival: torch.cuda.Event | None = None  # of that sum, if it comes from a GPU

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        self._sum = loss.clone() if self._sum is None else self._sum.add_(loss)
        if (batch_idx + 1) % self.EVERY == 0:
            # The copy is read 25 steps later. The host waits only if it is so far ahead.
            if self._seen is not None:
                self._await()
                self._check(trainer, pl_module, self._seen)
            if self._sum is not None:
                self._seen, self._sum = self._sum.to("cpu", non_blocking=True), None
                if loss.is_cuda:
                    self._arrival = torch.cuda.Event()
                    self._arrival.record()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_all(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_all(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it undeclared
            if not isinstance(callback, Average) or callback.network is None:
                continue
            loss = trainer.callback_metrics.get(f"val/loss{callback.suffix}")
            if loss is None or loss.isfinite() or is_finite(callback.network.state_dict()):
                continue
            raise DivergedError(
                f"the {callback.state_key} weights are not finite at step {trainer.global_step:,}, "
                f"although the training loss is; {self._last_sound(trainer) or 'no checkpoint yet'}"
            )

    def _check_all(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check all losses so far, which waits for the device."""
        self._await()
        sums = [x.cpu() for x in (self._seen, self._sum) if x is not None]
        if sums:  # one check, because each may cause a rollback
            self._check(trainer, pl_module, torch.stack(sums).sum())

    def _await(self) -> None:
        if self._arrival is not None:
            self._arrival.synchronize()

    def _check(self, trainer: Trainer, pl_module: LightningModule, value: Tensor) -> None:
        finite = bool(torch.isfinite(value)) or self._overflowed(trainer, pl_module)
        # All processes of a run do the same.
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            return
        self._seen = self._sum = None
        step, rate = trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]
        reason = f"the training loss is not finite at step {step:,}, learning rate {rate:.4g}"
        sound = self._last_sound(trainer)
        if self.on_nan == "stop" or len(self.rollbacks) == self.MOST_ROLLBACKS or not sound:
            raise DivergedError(f"{reason}; {sound or 'no checkpoint yet'}")
        self._restore(trainer, pl_module)
        self.rollbacks.append(step)
        rank_zero_warn(f"{reason}: restored {self.path} and halved the learning rate")

    def _overflowed(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether fp16 overflowed only in steps that its scaler skipped."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        return (
            scaler is not None
            and scaler.get_scale() >= self.LEAST_SCALE
            and is_finite(pl_module.state_dict())
        )

    def _last_sound(self, trainer: Trainer) -> str:
        """Name the last sound checkpoint; empty if there is none."""
        exists = trainer.strategy.reduce_boolean_decision(self.path.exists(), all=True)
        return f"the last sound checkpoint is {self.path}" if exists else ""

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(self.path, weights_only=True)
        pl_module.load_state_dict(checkpoint["state_dict"])
        trainer.optimizers[0].load_state_dict(checkpoint["optimizer_states"][0])
        scheduler = cast(LambdaLR, trainer.lr_scheduler_configs[0].scheduler)
        scheduler.base_lrs = [rate / 2 for rate in scheduler.base_lrs]
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, (base, factor) in zip(trainer.optimizers[0].param_groups, rates, strict=True):
            group["initial_lr"], group["lr"] = base, base * factor(scheduler.last_epoch)
        if "MixedPrecision" in checkpoint:  # the fp16 scaler's state
            trainer.precision_plugin.load_state_dict(checkpoint["MixedPrecision"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it undeclared
            if isinstance(callback, Average | Lookahead):
                callback.on_train_end(trainer, pl_module)  # removes its hook
                # Before its first average, SWA has no state.
                callback.load_state_dict(checkpoint["callbacks"].get(callback.state_key, {}))
                callback.on_train_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"rollbacks": self.rollbacks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rollbacks = list(state_dict["rollbacks"])
