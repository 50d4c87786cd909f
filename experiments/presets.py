"""The names of `--arch`, every architecture and further presets, and of `--trainer.precision`.

`configs/NAME.yaml` is the preset of NAME.
"""

from pathlib import Path
from typing import Literal

from lightning_modules import NETWORK_CLASSES, Classifiers

# Without bf16-true and 16-true, because Lightning then keeps metrics and averages in 16 bits too: a
# count of images stops at 2 ** 15, and EMA does not change.
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]
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
