"""A trained network as Hugging Face's Hub knows it; needs the extra `export`."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightning_modules import ARCHITECTURES

Dtype = Literal["float32", "bfloat16", "float16"]


class PretrainedClassifier(
    nn.Module, PyTorchModelHubMixin, library_name="sub5m", license="mit", tags=["cifar10"]
):
    """Pixels float (N, 3, 32, 32) in [0, 1], not normalised, to logits float32 (N, 10).

    What it is made of are the fields of `config.json`: an architecture with its classifier's
    hyper-parameters, the normalisation that it was trained with, the names of its classes, and the
    type that its weights have and that it computes in. `from_pretrained(FOLDER, strict=True)` gives
    back what `save_pretrained(FOLDER)` wrote, with neither network nor Lightning's checkpoint.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: str,
        hyper_parameters: dict[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str],
        dtype: Dtype = "float32",
    ) -> None:
        super().__init__()
        # How fast it trains on some machine is no property of a network.
        arguments = hyper_parameters | {"compile": False, "channels_last": False}
        self.network = ARCHITECTURES[arch](**arguments).network
        self.classes = tuple(classes)
        self.to(getattr(torch, dtype))
        # In config.json already, and in 32 bits whatever the weights have.
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values)[:, None, None]
            self.register_buffer(name, value, persistent=False)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the network computes."""
        return next(self.network.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        normalised = (images.float() - self.mean) / self.std
        return self.network(normalised.to(self.dtype)).float()
