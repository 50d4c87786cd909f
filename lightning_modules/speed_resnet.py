"""SpeedResNet as a LightningModule."""

from typing import Any, ClassVar

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from lightning_modules.classifier import Batch, ImageClassifier
from lightning_modules.layers.whitening import PatchWhitening
from lightning_modules.networks.speed_resnet import SpeedResNet
from lightning_modules.optimizers import optimizer_steps

#: number of training images that the whitening layer is computed from
WHITENED_IMAGES = 5_000


class SpeedResNetClassifier(ImageClassifier):
    """SpeedResNet with ImageClassifier's flags as `training`.

    When training begins, the whitening layer is computed from the first 5,000 training images of
    the Trainer's data module. Checkpoints contain it.
    """

    # The presets' rates are for batches of 500 images or more.
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
        classes: int = 10,
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: unit of widths, in channels.
            widths: channels of the three groups, as multiples of base_width.
            convs: convolutions in each group.
            residual: add the output of a group's first convolution before its last activation.
            whitening: whiten 2x2 patches in a frozen first layer; without it that layer is trained.
            whitening_bias: share of training that trains the bias of the whitening layer.
            dirac: initialise convolutions as the identity of their input channels.
            bn_momentum: share of the new batch in BatchNorm's running statistics.
            classes: classes of the data set, which run.py counts.
        """
        if not 0 <= whitening_bias <= 1:
            raise ValueError(
                f"whitening_bias must be in [0, 1], a share of training, got {whitening_bias}"
            )
        if training.get("optimizer") == "muon" and not whitening:
            raise ValueError(
                "whitening must be on if optimizer is muon, got whitening False: no normalisation "
                "follows the trained layer"
            )
        network = SpeedResNet(
            base_width, widths, convs, residual, whitening, dirac, bn_momentum, classes
        )
        super().__init__(network, **training)
        self._bias_steps = 0.0

    @property
    def _whitening(self) -> PatchWhitening | None:
        stem = self.network.stem
        return stem if isinstance(stem, PatchWhitening) else None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self._whitening is None or self._whitening.fitted:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "training_images"):
            raise MisconfigurationException(
                "whitening must be off if the Trainer has no data module with training_images"
            )
        self._whitening.fit_patches(data.training_images(WHITENED_IMAGES))

    def on_train_start(self) -> None:
        share = self.hparams["whitening_bias"]
        self._bias_steps = share * optimizer_steps(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # A frozen bias saves 5.6% of the backward pass's operations, because nothing before the
        # first group needs a gradient. DistributedDataParallel waits for the gradients of all its
        # initial parameters. A compiled network would be compiled again, for longer than it saves.
        # But SAM climbs along the gradients of all parameters that are not frozen.
        freezes = self.trainer.world_size == 1 and (not self.compiled or self.ascent is not None)
        if self._whitening is not None and freezes:
            trains = self.trainer.global_step < self._bias_steps
            self._whitening.bias.requires_grad_(trains)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._whitening is not None and self.trainer.global_step >= self._bias_steps:
            self._whitening.bias.grad = None

    def on_train_end(self) -> None:
        # It counts as a trained parameter.
        if self._whitening is not None:
            self._whitening.bias.requires_grad_(True)
