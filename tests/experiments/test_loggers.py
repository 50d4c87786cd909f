import csv
import importlib.util
import resource

import pytest

from experiments.console import UserError
from experiments.training.loggers import csv_logger, wandb_logger


@pytest.fixture
def without_wandb(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def test_a_new_launch_starts_a_new_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,2.5\n")
    logger = csv_logger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    assert rows(tmp_path) == [{"step": 0, "loss": 1.0}]


def test_a_resumed_launch_writes_epochs_as_the_first_one_did(tmp_path):
    first = csv_logger(tmp_path)
    first.log_metrics({"epoch": 0, "loss": 1.0}, step=0)
    first.save()
    written = (tmp_path / "metrics.csv").read_text()
    csv_logger(tmp_path, keep_steps=1)
    assert (tmp_path / "metrics.csv").read_text() == written


def test_a_resumed_launch_keeps_the_rows_that_it_does_not_repeat(tmp_path):
    first = csv_logger(tmp_path)
    values = [0.1 + 0.2, 1 / 3, 2**-30, 0.4]
    for step, value in enumerate(values):
        first.log_metrics({"loss": value}, step)
        first.log_metrics({"accuracy": step / 4}, step)
    first.save()

    second = csv_logger(tmp_path, keep_steps=3)
    kept = rows(tmp_path)  # on disk before any new value is logged
    expected = []
    for step, value in enumerate(values[:3]):
        expected += [{"step": step, "loss": value}, {"step": step, "accuracy": step / 4}]
    assert kept == expected

    second.log_metrics({"rate": 0.5}, step=3)
    second.save()
    assert rows(tmp_path) == [*expected, {"step": 3, "rate": 0.5}]


def test_a_new_column_that_cannot_be_written_loses_no_row(tmp_path):
    logger = csv_logger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    logger.log_metrics({"accuracy": 0.5}, step=1)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, unlimited[1]))  # bytes of a file
    try:
        with pytest.raises(OSError, match="File too large"):
            logger.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert rows(tmp_path) == [{"step": 0, "loss": 1.0}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_resuming_without_a_file_is_fine(tmp_path):
    csv_logger(tmp_path, keep_steps=3).log_metrics({"loss": 1.0}, step=3)


def test_disabled_is_no_logger(tmp_path):
    assert wandb_logger(tmp_path, "disabled", {}) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_wandb")
def test_without_the_package_the_curves_go_to_the_csv_alone(tmp_path):
    with pytest.warns(UserWarning, match="wandb is not installed"):
        assert wandb_logger(tmp_path, "offline", {}) is None


@pytest.mark.usefixtures("without_wandb")
def test_online_without_the_package_is_one_line(tmp_path, refusal):
    with pytest.raises(UserError, match="needs the package wandb: install it"):
        wandb_logger(tmp_path, "online", {})
    assert refusal("--wandb=online") == "--wandb online needs the package wandb: install it"


def test_online_without_an_account_is_one_line(refusal, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)  # the real init may find an account and a network
    assert refusal("--wandb=online") == (
        "--wandb online: No API key configured. Log in with `wandb login`, or use --wandb offline"
    )


def test_no_deprecated_wandb_function_is_used(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    asked = {}

    def init(**arguments):
        asked.update(arguments)
        raise wandb.errors.UsageError("Enough.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError):
        wandb_logger(tmp_path, "offline", {"arch": "sam_resnet"})
    assert asked["project"] == "sub5m"
    assert "anonymous" not in asked  # wandb warns about this setting
