"""Stochastic weight averaging: the mean of the weights of late epochs."""

from itertools import islice
from typing import Any, Literal, cast, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from callbacks.ema import EMA, Average
from callbacks.lookahead import HasNetwork


def cyclic_rate(step: int, cycle: int, lr: float, lr_min: float) -> float:
    """Return the learning rate of a step, counted from 0, in cycles of `cycle` steps.

    Within a cycle the rate falls linearly. The first step is already below `lr` by 1 / `cycle` of
    the fall, and the last step is exactly at `lr_min` (Izmailov et al. 2018).
    """
    t = (step % cycle + 1) / cycle
    return (1 - t) * lr + t * lr_min


@final
class SWA(Average):
    """Equal average of the weights of late epochs (Izmailov et al. 2018).

    From epoch int(start * max_epochs) on, `lr` overrides the module's schedule, which must be a
    function of the step alone. In a checkpoint, `callbacks.SWA.average` is the averaged network's
    `state_dict`.
    """

    suffix = "_swa"

    def __init__(
        self,
        start: float = 0.75,
        lr: float | None = None,
        schedule: Literal["constant", "cyclic"] = "constant",
        cycle_epochs: int = 1,
        lr_min: float = 0.0,
        bn_batches: int | None = None,
    ) -> None:
        """
        Args:
            start: share of the epochs before averaging begins.
            lr: learning rate during averaging, or at the start of a cycle; null keeps the module's.
            schedule: keep lr, or let it fall linearly to lr_min within each cycle.
            cycle_epochs: epochs between two updates of the average, and length of a cycle.
            lr_min: learning rate at a cycle's end (cyclic only).
            bn_batches: training batches for BatchNorm's statistics; null is the whole epoch.
        """
        super().__init__()
        if not 0 <= start < 1:
            raise ValueError(f"start must be in [0, 1), a share of the epochs, got {start}")
        if schedule not in ("constant", "cyclic"):
            raise ValueError(f"schedule must be 'constant' or 'cyclic', got {schedule!r}")
        if lr is not None and lr <= 0:
            raise ValueError(f"lr must be above 0, got {lr}")
        if schedule == "cyclic" and lr is None:
            raise ValueError("lr must be given for schedule 'cyclic', got none")
        if lr_min < 0 or (schedule == "cyclic" and lr is not None and lr_min >= lr):
            raise ValueError(f"lr_min must be in [0, lr), got {lr_min} with lr {lr}")
        if cycle_epochs < 1:
            raise ValueError(f"cycle_epochs must be 1 or more, got {cycle_epochs}")
        if bn_batches is not None and bn_batches < 1:
            raise ValueError(f"bn_batches must be 1 or more, got {bn_batches}")
        self.start = start
        self.lr = lr
        self.schedule = schedule
        self.cycle_epochs = cycle_epochs
        self.lr_min = lr_min
        self.bn_batches = bn_batches
        self._start_epoch = 0
        self._average: AveragedModel | None = None

    @property
    def network(self) -> nn.Module | None:
        return None if self._average is None else self._average.module

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if any(isinstance(callback, EMA) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "EMA and SWA must not be on together: SWA changes the learning rates of weights "
                "that EMA averages; switch one off (--ema false or --swa false)"
            )
        epochs = trainer.max_epochs
        if epochs is None or epochs < 1:
            raise MisconfigurationException(f"SWA's start needs max_epochs above 0, got {epochs}")
        self._start_epoch = int(self.start * epochs)
        if self.cycle_epochs > epochs - self._start_epoch:
            raise MisconfigurationException(
                f"cycle_epochs must be at most {epochs - self._start_epoch}, the epochs from SWA's "
                f"start to the end of training, got {self.cycle_epochs}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average = None
        if self._restored:
            self._average = self._new_average(pl_module)
            self._average.n_averaged.fill_(self._restored["updates"])
            self._average.module.load_state_dict(self._restored["average"])
            self._restored = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        epoch = trainer.current_epoch - self._start_epoch
        if self.lr is None or epoch < 0:
            return
        rate = self.lr
        if self.schedule == "cyclic":
            batches = int(trainer.num_training_batches)
            step = epoch * batches + batch_idx
            rate = cyclic_rate(step, self.cycle_epochs * batches, self.lr, self.lr_min)
        optimizer = trainer.optimizers[0]
        own = optimizer.defaults["lr"]
        for group in optimizer.param_groups:
            # A group with another rate keeps its ratio to the module's rate.
            group["lr"] = rate * (group.get("initial_lr", own) / own)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epochs = trainer.current_epoch - self._start_epoch + 1
        if not trainer.is_last_batch or epochs < 1 or epochs % self.cycle_epochs:
            return
        if self._average is None:
            self._average = self._new_average(pl_module)
        self._average.update_parameters(cast(HasNetwork, pl_module).network)
        self._recompute_batch_norm(trainer, self._average.module)

    def _recompute_batch_norm(self, trainer: Trainer, network: nn.Module) -> None:
        limit = int(trainer.num_training_batches)
        if self.bn_batches is not None:
            limit = min(limit, self.bn_batches)
        # This iterates the training loader once more. Training does not change: our loader computes
        # each batch from seed, epoch and position, and isolate_rng restores global generators.
        with isolate_rng(), trainer.precision_plugin.train_step_context():
            batches = islice(trainer.train_dataloader, limit)  # type: ignore[arg-type]
            update_bn((self._images(trainer, batch) for batch in batches), network)
        # Each process uses its own batches, and all take the mean.
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(trainer.strategy.reduce(buffer, reduce_op="mean"))

    @staticmethod
    def _images(trainer: Trainer, batch: Any) -> Tensor:
        """Return a batch's images as in a training step; several views count as images."""
        converted = trainer.precision_plugin.convert_input(batch)
        images: Tensor = trainer.strategy.batch_to_device(converted)[0]
        return images.flatten(0, -4)

    @staticmethod
    def _new_average(pl_module: LightningModule) -> AveragedModel:
        average = AveragedModel(cast(HasNetwork, pl_module).network)
        return average.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        if self._average is None:
            return self._restored
        updates = int(self._average.n_averaged)
        return {"updates": updates, "average": self._average.module.state_dict()}
