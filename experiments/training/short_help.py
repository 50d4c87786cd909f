"""`run.py --help`: the flags that people use most, without importing torch."""

from typing import Any

import yaml

from experiments.presets import CONFIGS, PRESETS

#: group -> flag, its default if the preset does not set it, and one line of help
FLAGS: dict[str, list[tuple[str, Any, str]]] = {
    "Run": [
        ("quick", False, "train a small network in two minutes or less; takes no value"),
        ("seed", 0, "seed of weights, data order and augmentation"),
        ("name", None, "name of the run's folder"),
        ("output", "runs", "folder of all run folders"),
        ("ckpt_path", None, "checkpoint to resume from; last: the newest unfinished run"),
        ("test", True, "read the test set once, after training"),
        ("wandb", "offline", "Weights & Biases: online, offline or disabled"),
        ("on_nan", "stop", "at a loss that is not finite: stop, or rollback"),
    ],
    "Training": [
        ("trainer.max_epochs", 200, "epochs"),
        ("trainer.max_time", None, "time limit, DD:HH:MM:SS"),
        ("trainer.precision", "auto", "auto, 32-true, bf16-mixed, 16-mixed or 64-true"),
        ("trainer.devices", 1, "number of devices"),
        ("trainer.gradient_clip_val", None, "limit of the gradient's norm, or of its values"),
        ("model.lr", 0.1, "peak learning rate"),
        ("model.weight_decay", 5e-4, "L2 penalty"),
        ("model.label_smoothing", 0.0, "weight of the uniform distribution in the target"),
        ("teacher", None, "folder of a finished run or an export to learn from"),
        ("model.compile", "auto", "auto, false, true, graph, reduce-overhead, max-autotune"),
    ],
    "Network": [
        ("fit_budget", None, "choose the largest network with at most this many parameters"),
        ("model.base_width", 64, "channels of the first stage"),
    ],
    "Data": [
        ("data.dataset", "cifar10", "cifar10, cifar100, svhn or folder"),
        ("data.root", None, "folder of the data set; null is $CIFAR10_ROOT, else data"),
        ("data.batch_size", 128, "training images of a step, on all devices together"),
        ("data.val_fraction", 0.1, "share of the training images for validation"),
        ("data.policy", "none", "none, trivial_augment, rand_augment or augmix"),
        ("data.cutout", 0, "side of the erased square, in pixels"),
        ("data.mixup_alpha", 0.0, "MixUp's alpha; 0 is off"),
        ("data.cutmix_alpha", 0.0, "CutMix's alpha; 0 is off"),
    ],
    "Averages": [
        ("ema", False, "moving average of the weights"),
        ("swa", False, "stochastic weight averaging"),
        ("lookahead", False, "Lookahead around the optimizer"),
    ],
}
#: the flag of the width, for networks in which it is not the first stage's 64 channels
WIDTHS: dict[str, tuple[str, Any, str]] = {
    "enhanced_efficient_resnet": ("model.base_width", 31, "channels of the stem"),
    "speed_resnet": ("model.base_width", 64, "unit of the three groups' widths, in channels"),
    "wide_resnet": ("model.widen_factor", 4.0, "width in multiples of 16, 32 and 64 channels"),
}


def flags_of(arch: str) -> dict[str, list[tuple[str, Any, str]]]:
    """The table for a name of `--arch`, with its preset's values as defaults."""
    preset = yaml.safe_load((CONFIGS / f"{arch}.yaml").read_text("utf-8"))
    width = WIDTHS.get(PRESETS.get(arch, arch))
    table = FLAGS if width is None else FLAGS | {"Network": [*FLAGS["Network"][:-1], width]}
    return {
        group: [(flag, _setting(preset, flag, default), text) for flag, default, text in flags]
        for group, flags in table.items()
    }


def short_help(arch: str) -> str:
    """The text of `run.py --arch ARCH --help`, in fewer than 60 lines."""
    lines = [
        f"usage: run.py --arch {arch} [flags]",
        "",
        f"Train and test {arch}. The values are this preset's.",
    ]
    for group, flags in flags_of(arch).items():
        lines += ["", f"{group}:"]
        lines += [f"  {f'--{name} {_in_words(value)}':34} {text}" for name, value, text in flags]
    lines += [
        "",
        "Settings of a switch: --ema.decay 0.99. A file of flags: --config FILE.yaml.",
        f"Every flag: run.py --arch {arch} --help all. Their values: --print_config.",
    ]
    return "\n".join(lines)


def _setting(preset: dict[str, Any], flag: str, default: Any) -> Any:
    value: Any = preset
    for key in flag.split("."):
        if not isinstance(value, dict) or key not in value:
            return default
        value = value[key]
    return True if isinstance(value, dict) else value  # a switch with settings is on


def _in_words(value: Any) -> str:
    return yaml.safe_dump(value).split("\n")[0]  # null, true, false and numbers as flags have them
