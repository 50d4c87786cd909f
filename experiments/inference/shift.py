"""Score a run's networks on shifted images: CIFAR-10-C and CIFAR-10.1.

Temperatures come from clean validation images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import fmean

from torch import Tensor

from datamodules.corruptions import BENCHMARK, CORRUPTIONS, corrupt
from datamodules.shifted import CIFAR10C, read_cifar10_1
from datamodules.tensor_loader import EvalLoader
from experiments.console import UserError, track
from experiments.inference.evaluation import (
    look,
    measure,
    open_images,
    open_networks,
    provenance,
)
from experiments.inference.finished import FinishedRun
from experiments.inference.strategies import BOTH, PLAIN, Strategy
from experiments.presets import Precision
from experiments.records.images import SOURCES
from experiments.records.record import Calibration, Shift, ShiftMean, ShiftResult, ShiftScore
from lightning_modules.prediction import fit_temperature
from lightning_modules.views import IDENTITY

#: of generated corruptions
SEED = 0

Scores = dict[str, ShiftScore]  # by strategy


def single_views(weights: Iterable[str]) -> dict[str, Strategy]:
    """Return strategies of one view: raw weights, their average, and both."""
    strategies = {PLAIN: Strategy({"raw": 1.0}, IDENTITY)}
    for name in weights:
        if name != "raw":
            strategies[name] = Strategy({name: 1.0}, IDENTITY)
            shares = {"raw": BOTH["raw"], name: BOTH["ema"]}
            strategies["ensemble"] = Strategy(shares, IDENTITY)
    return strategies


def evaluate_shift(
    run: FinishedRun,
    severities: Sequence[int],
    count: int | None = None,
    cifar10_c: Path | None = None,
    cifar10_1: Path | None = None,
    root: str | None = None,
    precision: Precision | None = None,
) -> Shift:
    """Predict the first `count` test images, by default all, with every corruption.

    Corruptions are generated, or read from the folder of the published CIFAR-10-C. If the folder of
    CIFAR-10.1 is given, it is scored too. Raises UserError for unreadable files, and for CIFAR-10.1
    if the run was trained on synthetic images.
    """
    trained_on = run.record.config["data"].get("dataset", "cifar10")
    if trained_on != "cifar10":
        raise UserError(
            f"--shift needs a network for CIFAR-10, but {run.folder} was trained on "
            f"{SOURCES[trained_on]}"
        )
    if cifar10_1 and run.record.source == "synthetic":
        raise UserError(
            f"--cifar101 contains photographs, but {run.folder} was trained on synthetic images"
        )
    wanted = {weights: (run, weights) for weights in run.record.weights}
    networks, device, taken_precision = open_networks(wanted, precision)
    origin = provenance(run, device, taken_precision)
    loaders = open_images(run, root, device)
    test = loaders["test"]
    images, labels = test.images[:count], test.labels[:count]
    if count is not None and len(images) < count:
        raise UserError(
            f"--images must be at most {len(images):,}, the size of the test set, got {count:,}"
        )
    published = CIFAR10C(cifar10_c, test.labels) if cifar10_c else None
    read_anew = read_cifar10_1(cifar10_1) if cifar10_1 else None

    strategies = single_views(run.record.weights)
    mean, std = test.mean.to(device), test.std.to(device)
    temperatures: dict[str, float] = {}

    def predict(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # Published images are in channels-last format, which changes the rounding of convolutions.
        loader = EvalLoader(images.to(device).contiguous(), labels, test.batch_size, mean, std)
        seen = look(networks, dict.fromkeys(networks, IDENTITY), loader, device)
        return {name: strategy.predict(seen) for name, strategy in strategies.items()}

    def score(images: Tensor, labels: Tensor) -> Scores:
        predictions = predict(images, labels)
        found = {n: measure(x, labels, temperatures.get(n)) for n, x in predictions.items()}
        return {name: ShiftScore(**measures) for name, measures in found.items()}

    def shifted(name: str, severity: int) -> Tensor:
        if published:
            return published.images(name, severity)[: len(images)]
        return corrupt(images, name, severity, SEED)

    if "val" in loaders:
        for name, x in predict(loaders["val"].images, loaders["val"].labels).items():
            temperatures[name] = fit_temperature(x, loaders["val"].labels)
    clean = score(images, labels)
    new = score(*read_anew) if read_anew else {}
    corrupted: dict[str, list[Scores]] = {name: [] for name in CORRUPTIONS}
    pairs = list(product(CORRUPTIONS, severities))
    for name, severity in track(pairs, "corruptions", len(pairs)):
        corrupted[name].append(score(shifted(name, severity), labels))

    return Shift(
        run=run.folder.resolve().name,
        **origin,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        corruptions="published" if published else "generated",
        seed=None if published else SEED,
        severities=list(severities),
        images=len(images),
        strategies={
            name: ShiftResult(
                strategy=asdict(strategy),
                temperature=temperatures.get(name),
                clean=clean[name],
                corrupted={c: [x[name] for x in scores] for c, scores in corrupted.items()},
                mean_15=mean_score(x[name] for c in BENCHMARK for x in corrupted[c]),
                mean_19=mean_score(x[name] for scores in corrupted.values() for x in scores),
                cifar10_1=new.get(name),
            )
            for name, strategy in strategies.items()
        },
    )


def mean_score(scores: Iterable[ShiftScore]) -> ShiftMean:
    """Return the mean over corruptions and severities of equally many images."""
    scores = list(scores)
    fitted = [x.fitted for x in scores if x.fitted]
    return ShiftMean(
        mce=1 - fmean(x.accuracy for x in scores),
        as_it_is=mean_calibration([x.as_it_is for x in scores]),
        fitted=mean_calibration(fitted) if fitted else None,
    )


def mean_calibration(calibrations: Sequence[Calibration]) -> Calibration:
    """Return the mean of each measure."""
    return Calibration(*map(fmean, zip(*map(astuple, calibrations), strict=True)))
