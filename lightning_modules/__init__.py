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


class _Architectures(Mapping[str, "type[ImageClassifier]"]):
    """Name -> LightningModule class, imported by `[name]`.

    Importing torch takes seconds, and an unknown name is found before that.
    """

    def __getitem__(self, name: str) -> "type[ImageClassifier]":
        class_name = f"{NETWORK_CLASSES[name]}Classifier"
        cls = getattr(import_module(f"lightning_modules.{name}"), class_name)
        assert isinstance(cls, type)
        return cls

    def __contains__(self, name: object) -> bool:
        return name in NETWORK_CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(NETWORK_CLASSES)

    def __len__(self) -> int:
        return len(NETWORK_CLASSES)


ARCHITECTURES: Mapping[str, "type[ImageClassifier]"] = _Architectures()
