"""Lightning's Trainer with the one default of ours: a precision that suits the machine."""

from typing import Any, Literal

import torch
from lightning.pytorch import Trainer as LightningTrainer

Precision = Literal[
    "auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"
]


def resolve_precision(precision: Precision, accelerator: str) -> str:
    """`auto` is bf16-mixed on a GPU that computes in it, else 16-mixed, and 32-true on a CPU."""
    if precision != "auto":
        return precision
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


class Trainer(LightningTrainer):
    """Lightning's Trainer, all of whose arguments are flags."""

    def __init__(
        self, precision: Precision = "auto", accelerator: str = "auto", **kwargs: Any
    ) -> None:
        """
        Args:
            precision: number format of training; auto chooses by the machine.
            accelerator: cpu, gpu or auto.
        """
        super().__init__(
            precision=resolve_precision(precision, accelerator), accelerator=accelerator, **kwargs
        )
