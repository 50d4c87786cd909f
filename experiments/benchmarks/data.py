"""`data`: images per second of each preset's data path, and of torchvision's transforms.

Our side is the whole `TrainLoader`. The stock side is a `DataLoader`, whose worker processes apply
torchvision's v2 transforms to one image after the other, and mix the collated batch. Both sides
have the same strengths, probabilities and batches. Worker processes survive all repeats, so that no
time includes their start.
"""

import argparse
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import islice
from math import ceil
from statistics import median
from typing import Any

import torch
from rich.table import Table

from datamodules import CIFAR10DataModule
from datamodules.tensor_loader import Batch, TrainLoader
from experiments.benchmarks.flags import chosen
from experiments.benchmarks.step import DTYPES, Step, Variant
from experiments.benchmarks.stock import stock_instead, stock_loader
from experiments.benchmarks.timing import Ratio, alternate, ratio
from experiments.console import UserError
from experiments.presets import EXPERIMENTS
from experiments.training.configuration import default_config, resolve_config
from experiments.training.machine import resolve_precision
from experiments.training.trainer import Trainer

#: a plain recipe in addition to the presets: crop, flip and Cutout
PLAIN = "-"
POLICIES = {
    "none": "",
    "trivial_augment": "TrivialAugment",
    "rand_augment": "RandAugment",
    "augmix": "AugMix",
}
#: settings that do not change the images
ELSEWHERE = ("root", "source", "download", "eval_batch_size", "val_fraction", "split_seed", "seed")


def measure(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure a row for each recipe; presets with the same recipe share a row.

    UserError for an unknown preset, for a `--share` that is not among them, and for a preset
    without a stock counterpart.
    """
    wanted = chosen("--presets", flags.presets or ",".join(EXPERIMENTS), EXPERIMENTS)
    if flags.share is not None and flags.share not in wanted:
        raise UserError(f"--share must be one of {','.join(wanted)}")
    recipes = {name: resolve_config(["--arch", name])["data"] for name in wanted}
    if flags.presets is None:
        recipes[PLAIN] = default_config("resnet")["data"] | {"cutout": 16}
    alike: dict[str, list[str]] = {}
    for name, settings in recipes.items():
        relevant = {key: value for key, value in settings.items() if key not in ELSEWHERE}
        alike.setdefault(str(relevant), []).append(name)
    for names in alike.values():
        settings = recipes[names[0]] | {"root": flags.root, "source": flags.source}
        presets = [name for name in names if name != PLAIN]
        row = {"presets": presets, **compare(settings, flags), "share": None}
        if flags.share in presets:
            row["share"] = share_of_step(flags.share, settings, flags)
        print(f"{names[0]}: {row['images_per_second']:,.0f} images/s", flush=True)
        yield row
        # Worker processes that survive into the next recipe print errors.
        gc.collect()


def share_of_step(
    preset: str, settings: Mapping[str, Any], flags: argparse.Namespace
) -> dict[str, Any]:
    """The time of a batch in the data path, divided by the time of a training step.

    UserError for a precision of the preset that `step` does not support.
    """
    config, device = resolve_config(["--arch", preset]), torch.device(flags.device)
    model = config["model"]
    precision = resolve_precision(flags.precision or config["trainer"]["precision"], flags.device)
    if precision not in DTYPES:
        raise UserError(
            f"--share {preset} trains in {precision}: set --precision to one of {', '.join(DTYPES)}"
        )
    memory_format = "channels_last" if model["channels_last"] else "contiguous"
    variant = Variant(model["compile"], precision, memory_format)
    loader = train_loader(settings, flags.device)
    step = Step(preset, model, variant, loader.batch_size, device)
    batches = endless(loader)
    seconds = alternate({"data": lambda: next(batches), "step": step}, flags.repeats, device)
    share = ratio(seconds["data"], seconds["step"])
    return {
        "preset": preset,
        **asdict(variant),
        **{f"{name}_seconds": times for name, times in seconds.items()},
        **asdict(share),
    }


def endless(loader: TrainLoader) -> Iterator[Batch]:
    """The batches of all epochs."""
    while True:
        yield from loader
        loader.set_epoch(loader.epoch + 1)


def compare(settings: Mapping[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """Time both sides of a recipe; `settings` are arguments of `CIFAR10DataModule`."""
    device = torch.device(flags.device)
    ours = train_loader(settings, flags.device)
    size = ours.batch_size
    batches = min(ceil(flags.images / size), len(ours))
    turns = ceil(flags.stock_images / size / flags.workers)
    stock_batches = min(turns * flags.workers, len(ours))
    stock = stock_loader(settings, ours, stock_batches, flags.workers)

    def run_ours() -> None:
        ours.set_epoch(ours.epoch + 1)
        for _ in islice(ours, batches):
            pass

    def run_stock() -> None:
        for images, targets in stock:
            images.to(device, non_blocking=True)
            targets.to(device, non_blocking=True)

    seconds = alternate({"ours": run_ours, "stock": run_stock}, flags.repeats, device)
    images, stock_images = batches * size, stock_batches * size
    gain = ratio(
        [x / stock_images for x in seconds["stock"]], [x / images for x in seconds["ours"]]
    )
    return {
        "recipe": in_words(settings),
        "batch_size": size,
        "images": images,
        "seconds": seconds["ours"],
        "images_per_second": images / median(seconds["ours"]),
        "stock_instead": stock_instead(settings),
        "stock_images": stock_images,
        "stock_seconds": seconds["stock"],
        "stock_images_per_second": stock_images / median(seconds["stock"]),
        "ratio": gain.median,
        "ratio_low": gain.low,
        "ratio_high": gain.high,
    }


def train_loader(settings: Mapping[str, Any], device: str) -> TrainLoader:
    """The loader that a run with this recipe has, with its images on the device."""
    data = CIFAR10DataModule(**settings)
    data.trainer = trainer_on(device)
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()


@cache
def trainer_on(device: str) -> Trainer:
    """A Trainer for all recipes, because each new Trainer prints its devices."""
    return Trainer(
        accelerator=device,  # type: ignore[arg-type]
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def in_words(settings: Mapping[str, Any]) -> str:
    """The operations of a recipe, with the size of Cutout's hole."""
    flip = {"random": "flip", "alternating": "alternating flip"}[settings["flip_mode"]]
    tones = [name for name in ("brightness", "contrast", "saturation", "hue") if settings[name]]
    does = {
        f"{settings['crop_mode']} crop": settings["crop_padding"],
        flip: settings["flip"],
        ", ".join(tones): tones,
        "rotation": settings["rotation"],
        "perspective": settings["perspective"],
        POLICIES[settings["policy"]]: settings["policy"] != "none",
        f"Cutout {settings['cutout']}": settings["cutout"],
        "MixUp": settings["mixup_alpha"],
        "CutMix": settings["cutmix_alpha"],
    }
    return ", ".join(name for name, strength in does.items() if strength)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = Table(
        title="Data path, images per second",
        show_lines=True,
        caption="Medians. Ratio: our speed over torchvision's, with its range over the rounds. "
        "Share: the time of a batch in our data path over the time of a training step.",
    )
    shown.add_column("presets and recipe")
    for column in ("batch", "ours", "stock", "ratio"):
        shown.add_column(column, justify="right")
    for row in rows:
        about = [*(f"[bold]{name}[/]" for name in row["presets"]), row["recipe"]]
        if row["stock_instead"]:
            about.append(f"torchvision: {row['stock_instead']}")
        if share := row["share"]:
            middle, low, high = (f"{share[key]:.1%}" for key in ("median", "low", "high"))
            about.append(f"share: {middle} [{low}, {high}]")
        shown.add_row(
            "\n".join(about),
            f"{row['batch_size']:,}",
            f"{row['images_per_second']:,.0f}",
            f"{row['stock_images_per_second']:,.0f}",
            str(Ratio(row["ratio"], row["ratio_low"], row["ratio_high"])),
        )
    return shown
