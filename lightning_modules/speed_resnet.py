"""SpeedResNet as a LightningModule."""

from typing import Any, ClassVar, Protocol

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from lightning_modules.classifier import Batch, ImageClassifier
from lightning_modules.layers.whitening import PatchWhitening
from lightning_modules.networks.speed_resnet import SpeedResNet
from lightning_modules.optimizers import optimizer_steps

#: training images that the whitening layer is computed from
WHITENED_IMAGES = 5_000


class HasTrainingImages(Protocol):
    """What the whitening layer asks of the Trainer's data module."""

    def training_images(self, count: int) -> Tensor:
        """The first `count` training images (N, 3, 32, 32), normalised, as they are on disk."""


class SpeedResNetClassifier(ImageClassifier):
    """SpeedResNet as an image classifier; `training` are ImageClassifier's arguments.

    The whitening layer is computed when training begins, from the first 5,000 training images of
    the Trainer's data module, and comes from the checkpoint afterwards.
    """

    grows = "base_width"
    # The preset's rate is for batches of 1,000 images.
    quick: ClassVar = {"base_width": 8, "lr": 0.1, "bias_lr_factor": 8.0}
    normalises = True

    def __init__(
        self,
        base_width: int = 64,
        widths: tuple[int, int, int] = (1, 4, 4),
        convs: int = 2,
        residual: bool = False,
        whitening: bool = True,
        whitening_bias: float = 0.3,
        dirac: bool = True,
        bn_momentum: float = 0.4,
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: channels that widths are multiples of.
            widths: channels of the three groups, as multiples of base_width.
            convs: convolutions in each group.
            residual: add the output of a group's first convolution before its last activation.
            whitening: whiten 2x2 patches in a frozen first layer; off, that layer is trained.
            whitening_bias: share of training in which the whitening layer's bias is trained.
            dirac: let convolutions start as the identity of as many channels as they get.
            bn_momentum: share of the new batch in BatchNorm's running statistics.
        """
        if not 0 <= whitening_bias <= 1:
            raise ValueError(
                f"whitening_bias must be in [0, 1], a share of training, got {whitening_bias}"
            )
        if training.get("optimizer") == "muon" and not whitening:
            raise ValueError(
                "whitening must be on where optimizer is muon: the trained layer in its place has "
                "no normalisation behind it, got whitening False"
            )
        network = SpeedResNet(base_width, widths, convs, residual, whitening, dirac, bn_momentum)
        super().__init__(network, **training)
        self._bias_steps = 0.0

    @property
    def _whitening(self) -> PatchWhitening | None:
        stem = self.network.stem
        return stem if isinstance(stem, PatchWhitening) else None

    def on_fit_start(self) -> None:
        if self._whitening is None or self._whitening.fitted:
            return
        data: HasTrainingImages | None = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "training_images"):
            raise MisconfigurationException(
                "whitening must be off where the Trainer has no data module with training_images"
            )
        assert data is not None
        self._whitening.fit_patches(data.training_images(WHITENED_IMAGES))

    def on_train_start(self) -> None:
        share = self.hparams["whitening_bias"]
        self._bias_steps = share * optimizer_steps(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Once the bias rests nothing before the first group needs a gradient, which saves 5.6% of
        # the backward pass's operations. Not so under DistributedDataParallel, which waits for the
        # gradient of every parameter that it began with.
        if self._whitening is not None and self.trainer.world_size == 1:
            rests = self.trainer.global_step >= self._bias_steps
            self._whitening.bias.requires_grad_(not rests)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._whitening is not None and self.trainer.global_step >= self._bias_steps:
            self._whitening.bias.grad = None

    def on_train_end(self) -> None:
        # It was trained, and counts as that.
        if self._whitening is not None:
            self._whitening.bias.requires_grad_(True)
