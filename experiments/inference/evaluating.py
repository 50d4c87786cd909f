"""Score strategies on validation and test, and choose one on validation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from torch import Tensor

from experiments.console import UserError, track
from experiments.inference.evaluation import (
    look,
    open_images,
    open_networks,
    provenance,
    score_strategy,
    seconds_per_1000,
)
from experiments.inference.finished import FinishedRun
from experiments.inference.strategies import (
    PLAIN,
    STRATEGIES,
    Strategy,
    joint_strategies,
    strategies_for,
)
from experiments.presets import Precision
from experiments.records.record import Evaluation, StrategyResult
from lightning_modules.prediction import fit_temperature


def evaluate(
    runs: Sequence[FinishedRun],
    wanted: Mapping[str, tuple[FinishedRun, str]],
    strategies: Mapping[str, Strategy],
    baseline: str,
    root: str | None,
    precision: Precision | None,
) -> Evaluation:
    """Score strategies on validation and test.

    Only validation decides the temperature and the choice.
    """
    networks, device, taken_precision = open_networks(wanted, precision)
    origin = provenance(runs[0], device, taken_precision)
    loaders = open_images(runs[0], root, device)
    views = {
        name: dict.fromkeys(v for s in strategies.values() if name in s.networks for v in s.views)
        for name in networks
    }
    labels = {split: loader.labels for split, loader in loaders.items()}
    predictions: dict[str, dict[str, Tensor]] = {}
    for split, loader in loaders.items():
        seen = look(networks, views, loader, device, f"{split} batches")
        predictions[split] = {name: s.predict(seen) for name, s in strategies.items()}

    results = {}
    last = list(loaders.values())[-1]
    mean, std = last.mean.to(device), last.std.to(device)
    for name, strategy in track(strategies.items(), "strategies", len(strategies)):
        temperature = None
        if "val" in loaders:
            temperature = fit_temperature(predictions["val"][name], labels["val"])
        scores = {
            split: score_strategy(by_name[name], by_name[baseline], labels[split], temperature)
            for split, by_name in predictions.items()
        }
        module = strategy.build(networks, mean, std)
        seconds = seconds_per_1000(module, last, device)
        results[name] = StrategyResult(asdict(strategy), temperature, seconds, scores)
    return Evaluation(
        runs=[run.folder.resolve().name for run in runs],
        **origin,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        baseline=baseline,
        chosen=choose(results),
        strategies=results,
    )


def choose(results: Mapping[str, StrategyResult]) -> str | None:
    """Return the strategy with the best validation accuracy, then the lowest NLL.

    The NLL is at the fitted temperature. None without validation images.
    """
    on_validation = {name: x.scores["val"] for name, x in results.items() if "val" in x.scores}

    def merit(name: str) -> tuple[float, float]:
        fitted = on_validation[name].fitted
        assert fitted is not None
        return on_validation[name].accuracy, -fitted.nll

    return max(on_validation, key=merit, default=None)


def evaluate_run(
    run: FinishedRun,
    only: Sequence[str],
    root: str | None,
    precision: Precision | None,
    chosen: str | None = None,
) -> Evaluation:
    """Evaluate all strategies of a run, or only plain and the named ones.

    `chosen` is a strategy that was chosen earlier, for a run without validation images.
    """
    if chosen and run.record.config["data"]["val_fraction"]:
        raise UserError(
            "--chosen is for runs without validation images, but "
            f"{run.folder} has some: leave it out"
        )
    weights = run.record.weights
    baseline = PLAIN if "raw" in weights else weights[0]  # an export has one set of weights
    strategies = strategies_for(weights)
    if asked := [chosen] if chosen else only:
        for name in asked:
            if missing := [w for w in STRATEGIES[name].networks if w not in weights]:
                flag = "chosen" if chosen else "only"
                raise UserError(f"--{flag} {name}: {run.folder} has no {missing[0]} weights")
        strategies = {n: s for n, s in strategies.items() if n in (baseline, *asked)}
    wanted = {w: (run, w) for w in weights if any(w in s.networks for s in strategies.values())}
    found = evaluate([run], wanted, strategies, baseline, root, precision)
    return replace(found, chosen=chosen) if chosen else found


def earlier_choice(run: FinishedRun) -> str | None:
    """The recorded choice of a run without validation images: a repetition keeps it."""
    if run.record.config["data"]["val_fraction"]:
        return None
    try:
        evaluation = run.evaluation()
    except UserError:  # a damaged record is replaced
        return None
    known = evaluation is not None and evaluation.chosen in STRATEGIES
    return evaluation.chosen if evaluation and known else None


def evaluate_together(
    runs: Sequence[FinishedRun], root: str | None, precision: Precision | None
) -> Evaluation:
    """Evaluate networks of several runs with their best weights on validation."""
    wanted, on_validation = {}, {}
    for run in runs:
        weights = run.record.selected or "raw"
        name = f"{run.folder.resolve().name}:{weights}"
        wanted[name] = run, weights
        scores = run.record.scores
        on_validation[name] = scores["val"][weights].accuracy if "val" in scores else 0.0
    baseline = max(on_validation, key=lambda name: on_validation[name])
    return evaluate(runs, wanted, joint_strategies(wanted), baseline, root, precision)


def check_alike(runs: Sequence[FinishedRun]) -> None:
    """Raise UserError if runs cannot be evaluated together."""
    first = runs[0]
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"runs must have different names, got {', '.join(names)}")
    for run in runs[1:]:
        if run.record.origin != first.record.origin:
            raise UserError(
                f"{first.folder} was trained on {first.record.origin} and {run.folder} on "
                f"{run.record.origin}: an ensemble needs the same images"
            )
        facts = [(x.classes, x.mean, x.std, x.image_size) for x in (first.images, run.images)]
        if facts[0] != facts[1]:
            # Synthetic images have the number of classes and the normalisation of any data set.
            raise UserError(
                f"{first.folder} and {run.folder} have other classes, or images of another size "
                "or normalisation: an ensemble needs the same images"
            )
        for key in ("val_fraction", "split_seed"):
            ours, theirs = (x.record.config["data"][key] for x in (first, run))
            if ours != theirs:
                # One run would have been trained on validation images of the other.
                raise UserError(
                    f"data.{key} is {ours} in {first.folder} and {theirs} in {run.folder}"
                )
