"""One experiment from the first step to its record: fit, evaluate, write."""

import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from callbacks import DivergedError, Divergence
from experiments.console import UserError
from experiments.inference.evaluation import predict, score, share_of_blocks
from experiments.inference.finished import Weights, load_weights, weights_digest
from experiments.records.images import ImageFacts
from experiments.records.integrity import seal
from experiments.records.metrics import Points, read_metrics
from experiments.records.provenance import describe_device, git_state, versions
from experiments.records.record import Record, Score, write_atomically, write_record
from experiments.tracking.wandb_media import results, scalars
from experiments.training.cli import ExperimentCLI
from experiments.training.configuration import on_meta
from experiments.training.devices import (
    end_processes,
    images_per_step,
    on_one_device,
    step_in_words,
)
from experiments.training.loggers import ClaimLogger
from experiments.training.plots import plot_augmented, plot_confusion, plot_curves
from experiments.training.processes import hand_on
from experiments.training.run_folder import PREVIOUS
from experiments.training.trainer import Trainer
from lightning_modules.classifier import ImageClassifier
from lightning_modules.networks import count_parameters

#: exit code of a training whose loss is no longer finite
DIVERGED = 3
#: names of the training accuracy, without and with mixing
TRAIN_ACCURACY = ("train/acc", "train/acc_soft")

Logits = dict[str, dict[str, Tensor]]  # split -> weights -> float32 (N, C)
Show = Callable[[Record, Path], None]


def run_experiment(cli: ExperimentCLI, show: Show) -> Record | None:
    """Train, evaluate each set of weights, write the record, and show it.

    With `--test false` the record has only validation scores. Returns None if `--trainer.max_time`
    ended the training early. Only the first of several processes evaluates, on its own device; the
    others return None. An interrupted run prints the command that continues it.
    """
    exit_code = 1
    try:
        record = _train_and_evaluate(cli, show)
        exit_code = 0
        return record
    except (KeyboardInterrupt, SystemExit):
        if cli.trainer.is_global_zero and (cli.launch.folder / "last.ckpt").exists():
            print(f"Interrupted. Continue with: {continuing(cli)}", flush=True)
        raise
    finally:
        for logger in cli.trainer.loggers:
            if isinstance(logger, ClaimLogger):
                logger.finish(exit_code)


def continuing(cli: ExperimentCLI) -> str:
    """The command that continues a run."""
    folder = cli.launch.folder
    flags = ["--arch", cli.launch.arch, "--name", folder.name, "--output", str(folder.parent)]
    return shlex.join(["python", "experiments/run.py", *flags, "--ckpt_path", "last"])


def _train_and_evaluate(cli: ExperimentCLI, show: Show) -> Record | None:
    folder = cli.launch.folder
    code = git_state()
    if cli.trainer.is_global_zero:
        write_atomically(folder / "config.yaml", seal(cli.resolved))
        with (folder / "commands.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(["python", *sys.argv]) + "\n")
        batch_size, lr = cli.datamodule.hparams["batch_size"], cli.model.hparams["lr"]
        print(step_in_words(cli.trainer, batch_size, lr))
        if cli.fitted:
            chosen = on_meta(cli.launch.arch, cli.model.hparams)
            print(cli.fitted.in_words(operations_per_image(chosen, cli.datamodule.data_set.side)))
    if cli.trainer.world_size > 1:
        hand_on(folder)
    try:
        cli.trainer.fit(
            cli.model, cli.datamodule, ckpt_path=cli.launch.checkpoint, weights_only=True
        )
    except DivergedError as error:
        raise UserError(f"{error}; try half of --model.lr", exit_code=DIVERGED) from None
    end_processes()
    if not cli.trainer.is_global_zero:
        return None
    timer = next(c for c in cli.trainer.callbacks if isinstance(c, Timer))
    remaining = timer.time_remaining()
    trainer = cli.trainer
    steps_left = trainer.global_step != trainer.max_steps
    epochs_left = trainer.max_epochs == -1 or epochs_trained(trainer) < (trainer.max_epochs or 0)
    if steps_left and epochs_left and remaining is not None and remaining <= 0:
        print(
            f"Out of time. Continue with: {continuing(cli)} and a longer --trainer.max_time, which "
            "counts from the first epoch"
        )
        return None
    if not (folder / "last.ckpt").exists():
        raise UserError(
            "no epoch has ended, so there is nothing to evaluate: see the --trainer flags"
        )

    clean = clean_train_accuracy(cli)  # before `evaluate` loads other weights
    labels, logits, scores = evaluate(cli)
    record = make_record(cli, code, scores, timer.time_elapsed("train"), clean)
    write_predictions(folder / "predictions.npz", labels, logits)
    write_record(record, folder / "result.json")
    (folder / PREVIOUS).unlink(missing_ok=True)  # a finished run is never resumed
    write_pictures(cli, record, labels, logits)
    show(record, folder)  # before the upload, which may be slow or fail
    send_results(cli, record, labels, logits)
    return record


def clean_train_accuracy(cli: ExperimentCLI) -> float | None:
    """Accuracy on training images, not augmented; None without validation images.

    As many images as validation images, because the two accuracies are compared.
    """
    data, trainer = cli.datamodule, on_one_device(cli.trainer)
    data.trainer = trainer
    if not (count := len(data.val_dataloader().images)):
        return None
    loader = data.clean_train_dataloader(count)
    weights = Weights("raw", cli.model.network.state_dict(), "last.ckpt", 0)
    logits = predict(trainer, cli.model, weights, loader)
    return score(logits, loader.labels.cpu(), weights).accuracy


def evaluate(cli: ExperimentCLI) -> tuple[dict[str, Tensor], Logits, dict[str, dict[str, Score]]]:
    """Labels of each split, and logits and scores for each set of weights."""
    trainer, data = on_one_device(cli.trainer), cli.datamodule
    data.trainer = trainer
    data.setup("test" if cli.config.test else "validate")
    loaders = {"val": data.val_dataloader()}
    if cli.config.test:
        loaders["test"] = data.test_dataloader()
    loaders = {split: loader for split, loader in loaders.items() if loader}
    names = [name for name in ("raw", "ema", "swa") if name == "raw" or cli.config[name]]
    found = (load_weights(cli.launch.folder, name) for name in names)
    weights = [w for w in found if w is not None]
    logits = {
        split: {w.name: predict(trainer, cli.model, w, loader) for w in weights}
        for split, loader in loaders.items()
    }
    labels = {split: loader.labels.cpu() for split, loader in loaders.items()}
    scores = {
        split: {w.name: score(logits[split][w.name], labels[split], w) for w in weights}
        for split in loaders
    }
    return labels, logits, scores


def write_predictions(path: Path, labels: dict[str, Tensor], logits: Logits) -> None:
    """Write arrays `{split}_labels` (N,) and `{split}_{weights}`, logits (N, C)."""
    arrays = {f"{split}_labels": x.numpy() for split, x in labels.items()}
    for split, by_weights in logits.items():
        arrays |= {f"{split}_{name}": x.numpy() for name, x in by_weights.items()}
    content = BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(path, content.getvalue())


def make_record(
    cli: ExperimentCLI,
    code: tuple[str, bool],
    scores: dict[str, dict[str, Score]],
    seconds: float,
    clean_train_accuracy: float | None,
) -> Record:
    """The record of a finished run."""
    trainer, data, folder = cli.trainer, cli.datamodule, cli.launch.folder
    commit, dirty = code
    on_validation = scores.get("val", {})
    config, metrics = yaml.safe_load(cli.resolved), read_metrics(folder / "metrics.csv")
    assert data.source is not None
    selected = max(on_validation, key=lambda name: on_validation[name].accuracy, default=None)
    weights, loader = load_weights(folder, selected or "raw"), data.val_dataloader()
    assert weights is not None
    evaluator = on_one_device(trainer), cli.model, weights, loader or data.test_dataloader()
    return Record(
        arch=cli.launch.arch,
        name=folder.name,
        command=(folder / "commands.txt").read_text("utf-8").splitlines(),
        config=config,
        quick=config["quick"],
        source=data.source,
        commit=commit,
        dirty=dirty,
        versions=versions(),
        device=(f"{trainer.world_size} x " if trainer.world_size > 1 else "")
        + describe_device(trainer.strategy.root_device),
        host=describe_device(),
        precision=str(trainer.precision),
        seed=config["seed"],
        parameters=count_parameters(cli.model.network),
        operations_per_image=operations_per_image(cli.model, data.data_set.side),
        epochs=epochs_trained(trainer),
        steps=trainer.global_step,
        train_images=int(trainer.num_training_batches) * config["data"]["batch_size"],
        training_seconds=round(seconds, 1),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        selected=selected,
        scores=scores,
        images_per_step=images_per_step(trainer, config["data"]["batch_size"]),
        rollbacks=next(len(c.rollbacks) for c in trainer.callbacks if isinstance(c, Divergence)),
        train_accuracy=last_train_accuracy(metrics),
        clean_train_accuracy=clean_train_accuracy,
        val_curve=[round(x, 6) for _, x in metrics.get("val/acc", [])],
        weights_digest=weights_digest(weights.state),
        blocks_used=share_of_blocks(*evaluator),
        images=ImageFacts.of(data),
    )


def epochs_trained(trainer: Trainer) -> int:
    """Number of trained epochs; `max_steps` may have shortened the last one."""
    # Not `current_epoch`, which is one too small in a resumed run that max_steps had ended.
    # Lightning annotates the tracker as its base class, which has no `processed`.
    return trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]


def last_train_accuracy(metrics: Mapping[str, Points]) -> float:
    """The training accuracy that was logged last, in this or an earlier launch."""
    return max(metrics[key][-1] for key in TRAIN_ACCURACY if key in metrics)[1]


def operations_per_image(module: ImageClassifier, side: int = 32) -> int:
    """Operations of one image's forward pass; a multiply-add counts as two."""
    module.eval()
    weight = next(module.parameters())
    # Two images, because gates let a single image skip blocks.
    images = torch.zeros(2, 3, side, side, device=weight.device, dtype=weight.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        module(images)
    return counter.get_total_flops() // 2


def write_pictures(
    cli: ExperimentCLI, record: Record, labels: dict[str, Tensor], logits: Logits
) -> None:
    """Draw augmented training images, curves and, after a test, the confusion matrix."""
    data, folder = cli.datamodule, cli.launch.folder
    images, _ = next(iter(data.train_dataloader()))
    images = images.flatten(0, -4)  # AugMix: the views of an image, side by side
    plot_augmented(images[:64].float().cpu(), data.mean, data.std, folder / "augmented.png")
    if "test" in labels:
        answers = logits["test"][record.selected or "raw"], labels["test"]
        plot_confusion(*answers, data.classes, folder / "confusion.png")
    plot_curves(read_metrics(folder / "metrics.csv"), folder / "curves.png")


def send_results(
    cli: ExperimentCLI, record: Record, labels: dict[str, Tensor], logits: Logits
) -> None:
    """Send the scores, and after a test its pictures, to W&B if it is on."""
    make_row, data = partial(scalars, record), cli.datamodule
    if "test" in labels:
        answers = logits["test"], labels["test"], data.test_dataloader().images, data.classes
        make_row = partial(results, record, *answers, cli.launch.folder / "augmented.png")
    for logger in cli.trainer.loggers:
        if isinstance(logger, ClaimLogger):
            logger.send(make_row, record.steps)
