"""The architectures: `ARCHITECTURES` contains every network that `--arch` knows."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.classifier import ImageClassifier

#: architecture -> class of its network; `Classifier` is added for its LightningModule
NETWORK_CLASSES = {
    "enhanced_efficient_resnet": "EnhancedEfficientResNet",
    "resnet": "ResNet",
    "sam_resnet": "SAMResNet",
    "se_resnet": "SEResNet",
    "speed_resnet": "SpeedResNet",
    "wide_resnet": "WideResNet",
}


class Classifiers(Mapping[str, "type[ImageClassifier]"]):
    """Name -> LightningModule class of its architecture, imported by `[name]`.

    Importing torch takes seconds, and an unknown name is found before that.
    """

    def __init__(self, architectures: Mapping[str, str]) -> None:
        self._architectures = architectures

    def __getitem__(self, name: str) -> "type[ImageClassifier]":
        architecture = self._architectures[name]
        module = import_module(f"lightning_modules.{architecture}")
        cls: type[ImageClassifier] = getattr(module, f"{NETWORK_CLASSES[architecture]}Classifier")
        return cls

    def __contains__(self, name: object) -> bool:
        return name in self._architectures

    def __iter__(self) -> Iterator[str]:
        return iter(self._architectures)

    def __len__(self) -> int:
        return len(self._architectures)


ARCHITECTURES = Classifiers({name: name for name in NETWORK_CLASSES})
