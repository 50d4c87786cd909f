"""The names of `--arch`: every architecture, and further presets.

`configs/NAME.yaml` is the preset of NAME.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules import ARCHITECTURES

if TYPE_CHECKING:
    from lightning_modules.classifier import ImageClassifier

#: folder of the presets
CONFIGS = Path(__file__).with_name("configs")
#: preset -> its architecture, if the names differ
PRESETS = {
    "base_1m": "speed_resnet",
    "champion": "wide_resnet",
    "champion_1m": "wide_resnet",
    "champion_cpu": "speed_resnet",
    "dms_resnet": "sam_resnet",
    "dms_teacher": "sam_resnet",
    "efficient_resnet": "sam_resnet",
    "small_300k": "speed_resnet",
    "speed_resnet_96": "speed_resnet",
    "tiny_100k": "speed_resnet",
}


class _Experiments(Mapping[str, "type[ImageClassifier]"]):
    """Name -> class of its architecture, imported on first use."""

    def __getitem__(self, name: str) -> "type[ImageClassifier]":
        return ARCHITECTURES[PRESETS.get(name, name)]

    def __contains__(self, name: object) -> bool:
        return name in PRESETS or name in ARCHITECTURES

    def __iter__(self) -> Iterator[str]:
        yield from sorted([*ARCHITECTURES, *PRESETS])

    def __len__(self) -> int:
        return len(ARCHITECTURES) + len(PRESETS)


EXPERIMENTS: Mapping[str, "type[ImageClassifier]"] = _Experiments()
