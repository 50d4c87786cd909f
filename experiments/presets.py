"""The names of `--arch`: every architecture, and further presets.

`configs/NAME.yaml` is the preset of NAME.
"""

from pathlib import Path

from lightning_modules import NETWORK_CLASSES, Classifiers

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
#: name -> its classifier
EXPERIMENTS = Classifiers(dict(sorted(({x: x for x in NETWORK_CLASSES} | PRESETS).items())))
