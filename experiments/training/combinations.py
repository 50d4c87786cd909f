"""Combinations of flags: rejected ones, and settings that depend on the machine."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from jsonargparse import Namespace

from datamodules.datasets import open_data_set
from experiments.training.length import images_of_classes, steps_of_epochs, training_images
from experiments.training.machine import resolve_channels_last, resolve_compile, resolve_precision
from lightning_modules.classifier import CAPTURED
from lightning_modules.optimizers import refuse_fused

#: flag -> the setting that it needs, and the values of that setting that use it
NEEDS = {
    "--model.rho": ("model.sharpness", ("sam", "asam")),
    "--model.target_rate": ("model.routing", ("gates",)),
    "--model.rising": ("model.schedule", ("onecycle", "warmup_onecycle", "triangular")),
    "--model.warmup": ("model.schedule", ("cosine", "warmup_onecycle")),
    "--model.warmup_lr": ("model.schedule", ("cosine", "warmup_onecycle")),
    "--model.milestones": ("model.schedule", ("step",)),
    "--model.gamma": ("model.schedule", ("step",)),
    "--model.triangle": ("model.schedule", ("triangular",)),
    "--model.muon_lr": ("model.optimizer", ("muon",)),
    "--model.muon_momentum": ("model.optimizer", ("muon",)),
    "--model.muon_steps": ("model.optimizer", ("muon",)),
    "--data.rand_augment_n": ("data.policy", ("rand_augment",)),
    "--data.rand_augment_m": ("data.policy", ("rand_augment",)),
    "--data.augmix_severity": ("data.policy", ("augmix",)),
}


#: Settings that do not change the training. All others count.
IRRELEVANT = frozenset(
    [
        # folders and names
        *("name", "output", "ckpt_path", "allow_changes"),
        *("data.root", "data.download", "trainer.default_root_dir"),
        # the seed, which a record contains separately
        *("seed", "seed_everything", "data.seed"),
        # output and logging
        *("wandb", "trainer.logger", "trainer.log_every_n_steps", "trainer.profiler"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
        *("trainer.enable_autolog_hparams", "trainer.model_registry"),
        # pauses: a run with a record has reached its last epoch
        "trainer.max_time",
        # the machine, and its way to compute the same
        *("trainer.accelerator", "trainer.benchmark", "trainer.inference_mode"),
        *("model.compile", "model.channels_last", "model.fused", "data.eval_batch_size"),
        # a network over the budget has no record
        *("budget", "budget.limit", "budget.action"),
    ]
)


#: settings of a run's devices, which may change when it is resumed
DEVICES = frozenset(["trainer.devices", "trainer.num_nodes", "trainer.strategy"])


def suit_data_set(config: Namespace, given: Collection[str]) -> None:
    """Set what follows from the data set: source, classes, flips, and test.

    `given` are the flags of the command line. ValueError or MisconfigurationException for a flag
    that contradicts the data set.
    """
    data, model = config.data, config.model
    data_set = open_data_set(data.dataset, data.root, data.image_size)
    if data.source == "cifar10":
        if "--data.source" in given and data.dataset != "cifar10":
            raise ValueError(
                f"--data.source must be {data.dataset}, synthetic or auto if --data.dataset is "
                f"{data.dataset}, got cifar10"
            )
        data.source = data.dataset
    classes = len(data_set.classes)
    if "--model.classes" in given and model.classes != classes:
        raise ValueError(
            f"--model.classes must be {classes} for --data.dataset {data.dataset}, got "
            f"{model.classes}: leave it out"
        )
    model.classes = classes
    asked = {"--data.flip", "--data.flip_mode"} & set(given)
    if not (data_set.mirrors or asked or _sets_flips(config)):
        data.flip, data.flip_mode = 0.0, "random"
    if not data_set.has_test:
        if config.test and "--test" in given:
            raise ValueError(
                f"--test true needs a test set, got no folder {data_set.root}/test: leave it out"
            )
        config.test = False


def _sets_flips(config: Namespace) -> bool:
    """Whether a `--config` file, such as a run's, sets flips for this data set."""
    files = [yaml.safe_load(path.get_content()) for path in config.config or []]
    sections = [file["data"] for file in files if isinstance(file.get("data"), Mapping)]
    return any(x.get("dataset") == config.data.dataset and "flip" in x for x in sections)


def refuse_combinations(config: Namespace, given: Collection[str]) -> None:
    """Reject contradictory flags: ValueError or MisconfigurationException.

    `given` are the flags of the command line: no setting of a preset may silently disable them.
    """
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed: seed must be in [0, 2**32), got {config.seed}")
    policy, weight = config.data.policy, config.model.jsd_weight
    if policy == "augmix" and weight == 0:
        raise ValueError(
            "--data.policy augmix needs its loss: set --model.jsd_weight, to 12 in its paper"
        )
    if policy != "augmix" and weight > 0:
        raise ValueError(f"--model.jsd_weight {weight} needs --data.policy augmix, got {policy}")
    for flag, (name, values) in NEEDS.items():
        if flag in given and config[name] not in values:
            raise ValueError(f"{flag} needs --{name} {' or '.join(values)}, got {config[name]}")
    taught = [flag for flag in given if flag.partition(".")[0] == "--distill"]
    if taught and not config.teacher:
        raise ValueError(f"{taught[0]} needs --teacher, the folder of a finished run")
    trainer = config.trainer
    if config.model.fused:
        precision = resolve_precision(trainer.precision, trainer.accelerator)
        refuse_fused(precision)
    if trainer.detect_anomaly and config.model.compile in CAPTURED:
        raise ValueError(
            "--trainer.detect_anomaly true does not work with CUDA graphs: set --model.compile "
            f"false, got {config.model.compile}"
        )
    epochs_only = "--trainer.max_epochs" in given and "--trainer.max_steps" not in given
    if epochs_only and 0 < trainer.max_steps < steps_of_epochs(config.as_dict()):
        raise ValueError(
            f"--trainer.max_epochs {trainer.max_epochs} would not be reached: --trainer.max_steps "
            f"{trainer.max_steps} ends training earlier; give both, -1 for no limit"
        )
    fraction, size = config.data.val_fraction, config.data.batch_size
    counts = images_of_classes(config.as_dict())
    images = sum(counts)
    whole = {"data": config.data.as_dict() | {"val_fraction": 0.0}}
    numbers = {
        "validation image: use 0 for none": training_images(whole) - images,
        "training image of a class: use a smaller share, such as 0.1": min(counts),
    }
    if 0 < fraction < 1 and (lacking := [text for text, number in numbers.items() if not number]):
        raise ValueError(f"--data.val_fraction {fraction} leaves no {lacking[0]}")
    if 0 <= fraction < 1 and size > images:
        raise ValueError(
            f"--data.batch_size must be at most the {images:,} training images, got {size}"
        )
    if fraction == 0 and not config.test:
        raise ValueError(
            "--data.val_fraction 0 leaves nothing to evaluate if the test set is not read or does "
            "not exist: use a fraction such as 0.1"
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two configurations, as "--flag: old -> new".

    Settings that do not change the training are left out, and settings that one of them lacks.
    """
    return list(_changes(before, now))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(before.keys() & now.keys()):
        name, old, new = f"{prefix}{key}", before[key], now[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{name}.")
        # A callback that is switched off has no settings: `ema` is false.
        elif old != new and name not in (IRRELEVANT - {"seed"}) | DEVICES:
            yield f"--{name}: {old} -> {new}"


def suit_machine(config: Namespace) -> None:
    """Replace each `auto` of the model's settings by its value on this machine.

    The precision stays `auto`, because records are compared by it and contain its value separately.
    """
    model, trainer = config.model, config.trainer
    steps = steps_of_epochs(config.as_dict())
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps)
    model.channels_last = resolve_channels_last(model.channels_last, trainer.accelerator)
    model.compile = resolve_compile(model.compile, trainer.accelerator, steps)
