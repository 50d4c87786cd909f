"""Import the state dicts that SAMResNet's authors publish."""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from datamodules.datasets import CIFAR10
from experiments.console import UserError
from experiments.inference.evaluation import look, open_images, open_networks, score
from experiments.inference.finished import FinishedRun, load_weights
from experiments.records.integrity import seal, seal_archive
from experiments.records.provenance import origin
from experiments.records.record import Record, write_atomically, write_record
from experiments.training.configuration import on_meta, resolve_config
from experiments.training.experiment import operations_per_image
from lightning_modules.networks import count_parameters

#: the normalisation of pixels in the authors' code
THEIR_MEAN, THEIR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
#: parts of the authors' keys, and ours
NAMES = {
    r"^conv1\b": "stem.0.0",
    r"^bn1\b": "stem.0.1",
    r"^linear\b": "head",
    r"\bconv(\d)\b": r"conv_bn\1.0",
    r"\bbn(\d)\b": r"conv_bn\1.1",
    r"\bse\.se\.1\b": "after_act1.fc1",
    r"\bse\.se\.3\b": "after_act1.fc2",
}


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the authors' network with the keys of our SAMResNet."""
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"^layer(\d)", lambda layer: f"stages.{int(layer[1]) - 1}", key)
        for theirs, ours in NAMES.items():
            name = re.sub(theirs, ours, name, count=1)
        renamed[name] = value
    return renamed


def with_our_normalisation(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SAMResNet's weights for images normalised with our mean and std.

    `state` is for images with the authors' normalisation. The first convolution and its BatchNorm
    contain the difference. Only the padding of images differs, by the difference of the means: less
    than 1e-4.
    """
    mean, std, their_mean, their_std = (
        torch.tensor(x, dtype=torch.float64)
        for x in (CIFAR10.mean, CIFAR10.std, THEIR_MEAN, THEIR_STD)
    )
    # The authors' pixels are ours * scale + shift.
    scale, shift = std / their_std, (mean - their_mean) / their_std
    weight = state["stem.0.0.weight"].double()
    changed = {
        "stem.0.0.weight": weight * scale[:, None, None],
        "stem.0.1.running_mean": state["stem.0.1.running_mean"] - weight.sum((2, 3)) @ shift,
    }
    return {**state, **{key: value.float() for key, value in changed.items()}}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of the authors' weights; UserError for any other file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: name a file of SAMResNet's authors, such as best_model.pth"
        ) from None
    except Exception as error:  # its class depends on the file's bytes
        raise UserError(
            f"{path} is not a state dict ({type(error).__name__}): name a file of SAMResNet's "
            "authors, such as best_model.pth"
        ) from None
    tensors = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(x, Tensor) for key, x in state.items()
    )
    if not tensors or not {"conv1.weight", "bn1.running_mean", "linear.weight"} <= state.keys():
        raise UserError(
            f"{path} is not a state dict of SAMResNet's authors: conv1, bn1 or linear is missing"
        )
    return rename(state)


def size_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the width and the numbers of blocks of a state dict with our keys."""
    blocks = {tuple(key.split(".")[:3]) for key in state if key.startswith("stages.")}
    counts = Counter(block[1] for block in blocks)
    width = state["stem.0.0.weight"].shape[:1].numel()
    return {"base_width": width, "blocks": [counts[stage] for stage in sorted(counts)]}


def import_weights(files: Mapping[str, Path], folder: Path, root: str | None = None) -> Record:
    """Write a finished run with the authors' weights, and return its record.

    `files` contains the files of the "raw" weights and, if there are any, of the "ema" weights. The
    record scores one view of the images of the standard test set in `root`. It has 0 epochs,
    because the training is not recorded. UserError for a wrong file and for a folder that exists.
    """
    if folder.exists():
        raise UserError(f"--output {folder} exists: remove it, or choose another --output")
    states = {name: read_weights(path) for name, path in files.items()}
    size = size_of(states["raw"])
    config = resolve_config(
        [
            *("--arch=sam_resnet", "--trainer.precision=32-true", "--model.channels_last=false"),
            # The authors train on all training images.
            "--data.val_fraction=0",
            *(f"--model.{key}={value}" for key, value in size.items()),
            *([] if "ema" in files else ["--ema=false"]),
        ]
    )
    try:
        module = on_meta("sam_resnet", config["model"])
    except ValueError as error:  # SAMResNet has no such size
        raise UserError(
            f"{files['raw']} is not a state dict of SAMResNet's authors: {error}"
        ) from None
    expected = {key: value.shape for key, value in module.network.state_dict().items()}
    for name, state in states.items():
        if {key: value.shape for key, value in state.items()} != expected:
            raise UserError(
                f"{files[name]} does not contain the weights of SAMResNet with base_width "
                f"{size['base_width']} and blocks {size['blocks']}"
            )
    here = origin()
    record = Record(
        arch="sam_resnet",
        name=folder.resolve().name,
        command=[shlex.join(["python", *sys.argv])],
        config=config,
        quick=False,
        source="cifar10",
        **here | {"device": "unknown", "host": here["device"]},
        precision="32-true",
        seed=config["seed"],
        parameters=count_parameters(module.network),
        operations_per_image=operations_per_image(module),
        epochs=0,
        steps=0,
        train_images=0,
        training_seconds=0.0,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        selected=None,
        scores={},
    )
    run = FinishedRun(folder, record)
    # The images are opened first, so that a missing CIFAR-10 leaves no folder.
    loader = open_images(run, root, torch.device("cpu"))["test"]
    folder.mkdir(parents=True)
    for name, state in states.items():
        _write_checkpoint(folder / f"best{'' if name == 'raw' else f'_{name}'}.ckpt", state)
    networks, device, _ = open_networks({name: (run, name) for name in states}, "32-true")
    views = {key: ["identity"] for key in networks}
    seen = look(networks, views, loader, device, "test batches")
    scores = {}
    for name, by_view in seen.items():
        weights = load_weights(folder, name)
        assert weights is not None
        scores[name] = score(by_view["identity"], loader.labels, weights)
    record = replace(record, scores={"test": scores})
    write_atomically(folder / "config.yaml", seal(yaml.safe_dump(config, sort_keys=False)))
    write_record(record, folder / "result.json")
    return record


def _write_checkpoint(path: Path, state: Mapping[str, Tensor]) -> None:
    ours = with_our_normalisation(state)
    # The epoch is not known: a checkpoint's epoch counts from 0, and a score's from 1.
    checkpoint = {"epoch": -1, "state_dict": {f"network.{key}": x for key, x in ours.items()}}
    content = BytesIO()
    torch.save(checkpoint, content)
    seal_archive(content)
    write_atomically(path, content.getvalue())
