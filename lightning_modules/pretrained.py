"""A trained network as a model for Hugging Face's Hub. Needs the extra `export`."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from lightning_modules.networks import build_network

Dtype = Literal["float32", "bfloat16", "float16"]


class PretrainedClassifier(nn.Module, PyTorchModelHubMixin, library_name="sub5m", license="mit"):
    """Maps pixels float (N, 3, H, W) in [0, 1] to logits float32 (N, C).

    The arguments are the fields of `config.json`: architecture, hyper-parameters, normalisation,
    names of the classes, dtype of weights and computations (BatchNorm's weights keep 32 bits), and
    side of the images.
    `from_pretrained(FOLDER, strict=True)` loads the files of `save_pretrained(FOLDER)` without a
    connection.
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
        image_size: int = 32,
    ) -> None:
        super().__init__()
        # The memory format depends on the machine, not on the network.
        self.network = build_network(arch, hyper_parameters | {"channels_last": False})
        self.classes = tuple(classes)
        self.image_size = image_size
        self.to(getattr(torch, dtype))
        # As in mixed precision, whose results an export in its type then repeats.
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
        # Not saved, because config.json contains them. In 32 bits for weights of any dtype.
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values)[:, None, None]
            self.register_buffer(name, value, persistent=False)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the network's computations."""
        return next(self.network.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        normalised = (images.float() - self.mean) / self.std
        return self.network(normalised.to(self.dtype)).float()
