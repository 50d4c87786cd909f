"""The progress of a run on the screen."""

from math import ceil
from time import monotonic
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments.console import duration

#: seconds between two refreshes of the bar
REFRESH = 1.0
#: seconds and steps after which a long run's duration is estimated
ESTIMATE_AFTER = (10.0, 3)
#: seconds that make a run long, and seconds that are too many for a CPU
LONG, TOO_LONG_ON_A_CPU = 600, 7200


def seconds_left(at: float, end: float, per_epoch: float, limit: float | None = None) -> float:
    """Time until a run ends, from its position, its end and the time of an epoch.

    With `limit`, the seconds that `max_time` leaves, the run ends with the first epoch after them.
    """
    if limit is not None:
        end = min(end, max(ceil(at + limit / per_epoch), ceil(at)))
    return max(end - at, 0.0) * per_epoch


@final
class Display(ProgressBar):
    """Prints each epoch's results, and on a terminal a bar of the current epoch.

    The bar shows the training loss and accuracy of the epoch so far and the remaining time of the
    whole run. They are read from the device once a second; with several devices, on rank 0.
    """

    def __init__(self, arch: str) -> None:
        super().__init__()
        self.arch = arch
        self.console = Console()
        name, text = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
        self._bar = Progress(
            name, BarColumn(20), text, console=self.console, auto_refresh=False, transient=True
        )
        self._task = self._bar.add_task("", visible=False, text="")
        self._enabled = True
        self._validation: dict[str, float] = {}
        self._ended: int | None = None  # the epoch that has ended and is not printed yet
        self._estimated = False

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._refreshed = self._epoch_began = monotonic()
        self._first: tuple[float, float] | None = None  # time and position after the first step
        self._last = (0.0, 0.0)  # time and position at the end of the latest epoch
        self._steps = 0
        # The parameters that `--model.lr` is for: Muon's filters and biases have other rates.
        groups, peak = trainer.optimizers[0].param_groups, pl_module.hparams["lr"]
        rates = [group.get("initial_lr") for group in groups]
        self._group = rates.index(peak) if peak in rates else 0
        limit = trainer.limit_val_batches
        if limit and (limit < 1 or isinstance(limit, int)):
            flag = f"--trainer.limit_val_batches {limit}"
            self._print(f"Epochs are validated on a part of the images ({flag}), the table on all")
        self._start_bar(self._epoch_name(trainer, trainer.current_epoch), "first step")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer)
        self._epoch_began = monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, self._steps = monotonic(), self._steps + 1
        at = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
        if self._first is None:
            self._first = now, at
        if not self._enabled or now - self._refreshed < REFRESH:
            return
        # `tolist` waits for the GPU: the clock is read after it, and the GPU idles once a second
        # for as long as a launch takes.
        metric: Any = pl_module.train_metric
        loss, correct, images = (x.tolist() for x in (metric.loss, metric.correct, metric.images))
        self._refreshed = now = monotonic()
        left = self._left(trainer, now, at)
        text = f"loss {loss / images:.4g}, train {correct / images:.1%}"
        self._show_bar(
            self._epoch_name(trainer, trainer.current_epoch),
            (batch_idx + 1) / trainer.num_training_batches,
            text if left is None else f"{text}, {duration(left)} left",
        )
        if left is not None and not self._estimated:
            self._estimate(trainer, now - self._began, left)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._bar.update(self._task, text="validation")
            self._bar.refresh()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics.items()
        found = {name: value for name, value in metrics if name.startswith("val/acc")}
        self._validation = {name: float(value) for name, value in found.items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The module logs its training metrics after this hook: they are printed a little later.
        self._ended = trainer.current_epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer)
        self._stop_bar()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._print_epoch(trainer)
        self._stop_bar()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_bar("evaluation", "")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if monotonic() - self._refreshed >= REFRESH:
            self._refreshed = monotonic()
            batches = trainer.num_predict_batches[dataloader_idx]
            self._show_bar("evaluation", (batch_idx + 1) / batches, f"batch {batch_idx + 1}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_bar()

    def _start_bar(self, name: str, text: str) -> None:
        self._refreshed = monotonic()
        if self._enabled and self.console.is_interactive:
            self._bar.start()
            self._show_bar(name, 0.0, text)

    def _stop_bar(self) -> None:
        if self.console.is_interactive:  # else rich prints an empty line
            self._bar.stop()

    def _show_bar(self, name: str, share: float, text: str) -> None:
        self._bar.update(
            self._task, description=name, total=1, completed=share, text=text, visible=True
        )
        self._bar.refresh()

    @staticmethod
    def _epoch_name(trainer: Trainer, epoch: int) -> str:
        known = trainer.max_epochs not in (None, -1)
        return f"epoch {epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")

    def _left(self, trainer: Trainer, now: float, at: float) -> float | None:
        """Seconds until the run ends, at the speed since this launch's first step.

        None as long as the speed is not known.
        """
        assert self._first is not None
        # Whole epochs include their validations and checkpoints.
        until, position = self._last if self._last[1] > self._first[1] else (now, at)
        if position <= self._first[1]:
            return None
        per_epoch = (until - self._first[0]) / (position - self._first[1])
        steps = ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        end = trainer.estimated_stepping_batches / steps
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it undeclared
        timers = [c for c in callbacks if isinstance(c, Timer)]
        limits = [x for x in (timer.time_remaining() for timer in timers) if x is not None]
        return seconds_left(at, end, per_epoch, min(limits, default=None))

    def _estimate(self, trainer: Trainer, elapsed: float, left: float) -> None:
        """Print the estimated duration of a long run, once."""
        seconds, steps = ESTIMATE_AFTER
        if elapsed < seconds or self._steps < steps:
            return
        self._estimated = True
        if left < LONG:
            return
        self._print(f"Estimated remaining time of the whole run: {duration(left)}")
        if trainer.strategy.root_device.type == "cpu" and left > TOO_LONG_ON_A_CPU:
            faster = "" if self.arch == "champion_cpu" else "--arch champion_cpu, or "
            self._print(f"Faster on a CPU: {faster}--quick, which takes minutes")

    def _print_epoch(self, trainer: Trainer) -> None:
        """Print the line of the epoch that has ended, if there is one."""
        if self._ended is None or not self._enabled:
            return
        epoch, self._ended, now = self._ended, None, monotonic()
        self._last = now, epoch + 1.0
        parts = []
        names = {"train/loss": "loss", "train/acc": "train", "train/acc_soft": "train (mixed)"}
        for key, name in names.items():
            if (value := trainer.callback_metrics.get(key)) is not None:
                shown = f"{float(value):.4f}" if key == "train/loss" else f"{float(value):.2%}"
                parts.append(f"{name} {shown}")
        for key, accuracy in self._validation.items():
            parts.append(f"{key.replace('/acc_', ' ').replace('/acc', '')} {accuracy:.2%}")
        self._validation = {}
        rate = trainer.optimizers[0].param_groups[self._group]["lr"]
        parts += [f"lr {rate:.3g}", duration(now - self._epoch_began)]
        left = None if self._first is None else self._left(trainer, now, epoch + 1.0)
        if left:
            parts.append(f"{duration(left)} left")
        self._print(f"{self._epoch_name(trainer, epoch)}: {', '.join(parts)}")

    def _print(self, line: str) -> None:
        if self._enabled:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
