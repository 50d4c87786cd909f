"""What is trained: `ARCHITECTURES` names every network that `--arch` knows."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.classifier import ImageClassifier

_CLASSES = {
    "enhanced_efficient_resnet": "EnhancedEfficientResNetClassifier",
    "resnet": "ResNetClassifier",
    "sam_resnet": "SAMResNetClassifier",
    "se_resnet": "SEResNetClassifier",
    "speed_resnet": "SpeedResNetClassifier",
    "wide_resnet": "WideResNetClassifier",
}


class _Architectures(Mapping[str, "type[ImageClassifier]"]):
    """Name -> LightningModule class, imported when it is asked for.

    Importing torch takes seconds; a mistyped name is answered before that.
    """

    def __getitem__(self, name: str) -> "type[ImageClassifier]":
        class_name = _CLASSES[name]
        cls = getattr(import_module(f"lightning_modules.{name}"), class_name)
        assert isinstance(cls, type)
        return cls

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


ARCHITECTURES: Mapping[str, "type[ImageClassifier]"] = _Architectures()
