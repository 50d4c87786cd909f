"""Lightning's Trainer, with a precision that suits the machine and checkpoints that are whole."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer

# Not bf16-true and 16-true, in which Lightning keeps metrics and averages too: a count of images
# stops at 2 ** 15, and EMA does not move.
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]


def resolve_precision(precision: Precision, accelerator: str) -> Any:
    """`auto` is bf16-mixed on a GPU that computes in it, else 16-mixed, and 32-true on a CPU."""
    if precision != "auto":
        return precision
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a killed run leaves a whole one.

    Lightning's own moves it there from the system's temporary folder: a copy, which can be cut off,
    where that lies on another file system. What a full disk cut off is removed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        partial = Path(f"{path}.partial")
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            partial.replace(path)
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
            precision: number format of training; auto chooses by the machine.
            accelerator: what computes; auto is a GPU where there is one.
            plugins: Lightning plugins, beside ours that writes checkpoints.
        """
        super().__init__(
            precision=resolve_precision(precision, accelerator),
            accelerator=accelerator,
            plugins=[WholeFiles(), *(plugins or [])],
            **kwargs,
        )
        # Where there is max_steps Lightning takes a checkpoint of an epoch's end for one within it:
        # what goes on from there would count and log that epoch twice, and leave out the next. It
        # asks by this method alone, in two places, and both are wrong for a run of whole epochs.
        self.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
