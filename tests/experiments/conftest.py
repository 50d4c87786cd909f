"""Run the commands in this process: a new process imports torch and Lightning for seconds."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from torch import Tensor

import datamodules.cifar10
import experiments.training.experiment
from datamodules.synthetic import synthetic_cifar10
from experiments import console
from experiments.records.record import Record, Score
from experiments.reporting.tables import show_result
from experiments.training.cli import ExperimentCLI
from experiments.training.configuration import resolve_config
from experiments.training.launch import read_launch

TINY = (
    "--data.source=synthetic",
    "--data.batch_size=32",
    "--trainer.accelerator=cpu",
    # By default these depend on the machine.
    "--trainer.precision=32-true",
    "--model.channels_last=false",
    "--model.compile=false",
    "--trainer.limit_train_batches=3",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--wandb=disabled",
)
# Used if the flags contain no --arch.
TINY_NETWORK = ("--arch=sam_resnet", "--model.base_width=4", "--model.blocks=[1,1,1]")


@pytest.fixture(scope="session", autouse=True)
def one_parser_an_architecture() -> Iterator[None]:
    """Build each parser once: this takes longer than parsing, and parsers have no state."""
    parsers: dict[str, Any] = {}
    setup_parser = ExperimentCLI.setup_parser

    def setup_once(cli: ExperimentCLI, *args: Any) -> None:
        if cli.launch.arch not in parsers:
            setup_parser(cli, *args)
            parsers[cli.launch.arch] = cli.parser
        cli.parser = parsers[cli.launch.arch]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExperimentCLI, "setup_parser", setup_once)
        yield


@cache
def _few_images(split: str, **_: int) -> tuple[Tensor, Tensor]:
    """The synthetic set with 1,800 images to train on, 200 to validate and 300 to test."""
    return synthetic_cifar10(split, per_class=200 if split == "train" else 30)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Run:
    """A run, with its folder and its output."""

    cli: ExperimentCLI
    record: Record | None
    folder: Path
    output: str


Images = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def few_images() -> Images:
    return _few_images


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The arguments of a tiny experiment; these flags override the defaults."""
    where = f"--output={tmp_path_factory.mktemp('output')}"
    numbers = count()

    def tiny(*flags: str) -> list[str]:
        network = () if any(flag.startswith("--arch=") for flag in flags) else TINY_NETWORK
        return [*network, *TINY, where, f"--name=run{next(numbers)}", *flags]

    return tiny


@pytest.fixture(scope="session")
def build(tiny: Callable[..., list[str]]) -> Callable[..., ExperimentCLI]:
    """Build a tiny experiment with these flags, without training."""
    return lambda *flags: ExperimentCLI(read_launch(tiny(*flags)))


@pytest.fixture(scope="session")
def command() -> Callable[..., Run]:
    """Run `run.py` with these arguments in this process, by default on few synthetic images.

    By default it writes no pictures, because they take as long as all other work.
    """

    def command(
        argv: list[str],
        images: Images = _few_images,
        callbacks: Sequence[Callback] = (),
        pictures: bool = False,
    ) -> Run:
        output = StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
            patch.setattr(sys, "argv", ["experiments/run.py", *argv])
            patch.setattr(datamodules.cifar10, "synthetic_cifar10", images)
            if not pictures:
                patch.setattr(experiments.training.experiment, "write_pictures", lambda *_: None)
            cli = ExperimentCLI(read_launch(argv))
            cli.trainer.callbacks.extend(callbacks)
            try:
                record = experiments.training.experiment.run_experiment(cli, show_result)
            finally:
                assert cli.lock  # the end of the process would release it
                cli.lock.close()
        return Run(cli, record, cli.launch.folder, output.getvalue())

    return command


@pytest.fixture(scope="session")
def experiment(tiny: Callable[..., list[str]], command: Callable[..., Run]) -> Callable[..., Run]:
    """Run a tiny experiment with these flags."""
    return lambda *flags, **options: command(tiny(*flags), **options)


@pytest.fixture
def refusal(
    build: Callable[..., ExperimentCLI], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Assert exit code 2 and a single line `error: ...`; return the message after `error: `."""

    def refusal(*flags: str, act: Callable[..., object] = build) -> str:
        with pytest.raises(SystemExit) as end:
            console.command(lambda: act(*flags))()
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return refusal


@pytest.fixture(scope="session")
def record_of() -> Callable[..., Record]:
    """Create a record of a run with these flags and fields."""
    resolve = cache(lambda flags: resolve_config(list(flags)))

    def record_of(flags: list[str], **fields: Any) -> Record:
        config = resolve(tuple(flags))
        score = Score(0.9, nll=0.3, ece=0.0, images=10_000, checkpoint="best.ckpt", epoch=6)
        made = Record(
            arch=config["arch"],
            name="a",
            command=[shlex.join(["python", "experiments/run.py", *flags])],
            config=config,
            quick=False,
            source="cifar10",
            commit="0" * 40,
            dirty=False,
            versions={},
            device="cpu",
            precision="bf16-mixed",
            seed=config["seed"],
            parameters=1,
            operations_per_image=1,
            epochs=6,
            steps=1,
            train_images=1,
            training_seconds=1.0,
            finished="2026-01-01T00:00:00+00:00",
            selected="raw",
            scores={"val": {"raw": score}, "test": {"raw": score}},
        )
        return replace(made, **fields)

    return record_of
