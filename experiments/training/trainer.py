"""Lightning's Trainer, with a precision that suits the machine, and checkpoints from a thread."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer

from callbacks.snapshot import snapshot
from experiments.console import UserError
from experiments.presets import Precision
from experiments.records.integrity import check_archive, seal_archive
from experiments.training.machine import resolve_precision, set_tf32
from experiments.training.run_folder import LAST, keep_previous
from lightning_modules.classifier import ImageClassifier
from lightning_modules.optimizers import OPTIMIZER_HPARAMS

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]


class BackgroundFiles(TorchCheckpointIO):
    """Writes checkpoints in a thread, in the order of the calls.

    Saving copies the checkpoint, and training continues. A checkpoint is written next to its place
    and renamed, so that a killed run leaves whole files. An error in the thread removes the
    unfinished file, and the next call raises it. `teardown` waits for all files. Lightning calls it
    at the end of training, also after errors and signals.
    """

    #: checkpoints that may wait at once; at more of them, saving waits for the disk
    WAITING = 3

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writes: deque[Future[None]] = deque()
        self._folders: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        self._collect(self.WAITING - 1)
        path = Path(path)
        if path.parent not in self._folders:  # a folder that is deleted later stays deleted
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        self._writes.append(self._thread.submit(self._write, snapshot(checkpoint), path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._collect(0)
        check_archive(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        self._collect(0)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        self._collect(0)

    def _collect(self, waiting: int) -> None:
        """Wait until so many writes are left, and raise the error of a write that failed."""
        while self._writes and (len(self._writes) > waiting or self._writes[0].done()):
            self._writes.popleft().result()

    @staticmethod
    def _write(checkpoint: dict[str, Any], path: Path) -> None:
        # Not into the file itself: torch would turn a full disk's OSError into a RuntimeError, and
        # hold the interpreter's lock, which training needs, as long as the disk takes.
        content = BytesIO()
        torch.save(checkpoint, content)
        seal_archive(content)
        partial = path.with_name(f"{path.name}.partial")
        try:
            partial.write_bytes(content.getbuffer())
            if path.name == LAST:
                keep_previous(path)
            partial.replace(path)
        except FileNotFoundError:
            raise UserError(f"{path.parent} was deleted during the run") from None
        except OSError:
            partial.unlink(missing_ok=True)
            raise


class Trainer(LightningTrainer):
    """Lightning's Trainer, all of whose arguments are flags."""

    callbacks: list[Callback]

    def __init__(
        self,
        precision: Precision = "auto",
        accelerator: Accelerator = "auto",
        plugins: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            precision: precision of training; auto chooses by the machine.
            accelerator: device that trains; auto is a GPU if there is one.
            plugins: Lightning plugins, in addition to ours for checkpoints.
        """
        set_tf32()
        super().__init__(
            precision=resolve_precision(precision, accelerator),
            accelerator=accelerator,
            plugins=[BackgroundFiles(), *(plugins or [])],
            **kwargs,
        )
        # With max_steps, Lightning treats a checkpoint at an epoch's end as a checkpoint within the
        # epoch: a resumed run would count and log that epoch twice, and skip the next epoch.
        # Lightning calls this method for it in two places, both wrong for runs of whole epochs.
        self.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def read_checkpoint(path: Path, model: ImageClassifier) -> dict[str, Any]:
    """Read a checkpoint for a network and its optimizer.

    UserError if it cannot be read, or does not fit.
    """
    try:
        check_archive(path)
        checkpoint = torch.load(path, "cpu", weights_only=True)
    except UserError as error:
        raise UserError(f"--ckpt_path {error}") from None
    except Exception as error:  # its class depends on the file's bytes
        raise UserError(f"--ckpt_path {path} is not a checkpoint: {type(error).__name__}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"--ckpt_path {path} is not a checkpoint: {type(checkpoint).__name__}")
    model.on_load_checkpoint(checkpoint)
    if "optimizer_states" not in checkpoint:
        raise UserError(f"--ckpt_path {path} contains only weights: name the last.ckpt of its run")
    theirs = checkpoint["hyper_parameters"]
    for name in OPTIMIZER_HPARAMS:
        # The optimizer's state contains these values, and would ignore the flags.
        if name in theirs and theirs[name] != (ours := model.hparams[name]):
            raise UserError(
                f"--model.{name} must stay {theirs[name]}, as in --ckpt_path {path}, got {ours}"
            )
    return checkpoint
