"""W&B accepts the sweeps, and `run.py` accepts the commands of W&B's agents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps import utils as agent

from experiments.training.cli import ExperimentCLI
from experiments.training.launch import read_launch
from experiments.training.loggers import wandb_logger

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))

# The schema of W&B's package sweeps 0.3.0. The package needs NumPy 1, so it cannot be installed.
# The schema uses two formats to distinguish integers and floats.
SCHEMA = json.loads((Path(__file__).parent / "wandb_sweeps" / "schema.json").read_text())
FORMATS = jsonschema.FormatChecker()
FORMATS.checks("float")(lambda value: isinstance(value, float))
FORMATS.checks("integer")(lambda value: isinstance(value, int))

Sweep = dict[str, Any]


def violations(sweep: Sweep) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMA, format_checker=FORMATS)
    return [error.message for error in validator.iter_errors(sweep)]


@pytest.fixture(params=SWEEPS, ids=lambda path: path.stem)
def sweep(request: pytest.FixtureRequest) -> Sweep:
    loaded = agent.load_sweep_config(request.param)
    assert loaded
    return loaded


def ends(parameter: dict[str, Any]) -> list[Any]:
    """All values of a parameter, or the minimum and the maximum of a range."""
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def samples(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Draws of all parameters that together contain every value of `ends`."""
    parameters = sweep["parameters"]
    for i in range(max(len(ends(parameter)) for parameter in parameters.values())):
        yield {name: ends(p)[min(i, len(ends(p)) - 1)] for name, p in parameters.items()}


def command(sweep: Sweep, drawn: dict[str, Any]) -> list[str]:
    """The command that W&B's agent starts, built with the agent's own functions."""
    words = agent.create_sweep_command_args({"args": {k: {"value": v} for k, v in drawn.items()}})
    words |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    parts = agent.create_sweep_command(list(sweep["command"]))
    return [word for part in parts for word in words.get(part.strip("${}"), [part])]


def at(settings: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        settings = settings[key]
    return settings


def test_the_optimizer_and_each_papers_augmentation_have_a_comparison() -> None:
    assert {path.stem for path in SWEEPS} == {
        "lr_weight_decay",
        "sam_resnet_augmentation",
        "enhanced_efficient_resnet_augmentation",
    }


def test_wandb_accepts_it(sweep: Sweep) -> None:
    assert violations(sweep) == []
    for name, parameter in sweep["parameters"].items():
        assert "values" in parameter or parameter["min"] < parameter["max"], name


@pytest.mark.parametrize(
    "mistake",
    [
        {"method": "guess"},
        {"metrics_": {"name": "val/acc"}},
        {"metric": {"name": "val/acc", "goal": "highest"}},
        {"early_terminate": {"type": "hyperband", "min_iter": "late"}},
        {"parameters": {"model.lr": {"distribution": "log_uniform_values", "min": 0.01}}},
        {"parameters": {"model.lr": {"min": "low", "max": 1.0}}},
        {"parameters": {"model lr": {"values": [1]}}},
    ],
)
def test_a_mistake_is_not_accepted(mistake: Sweep) -> None:
    for path in SWEEPS:
        assert violations(yaml.safe_load(path.read_text()) | mistake)


def test_an_agents_command_is_accepted_and_has_the_drawn_values(
    sweep: Sweep, tmp_path: Path
) -> None:
    for i, drawn in enumerate(samples(sweep)):
        env, python, program, *flags = command(sweep, drawn)
        assert (env, python) == ("/usr/bin/env", "python")
        assert (ROOT / program).is_file()
        assert "--wandb=online" in flags
        # Flags that no sweep varies: for speed, and to work without an account.
        here = ["--data.source=synthetic", "--wandb=disabled", "--trainer.accelerator=cpu"]
        here += ["--model.base_width=4", f"--output={tmp_path}", f"--name={i}"]
        cli = ExperimentCLI(read_launch([*flags, *here]))
        settings = yaml.safe_load(cli.resolved)
        assert {path: at(settings, path) for path in drawn} == drawn
        assert sweep["early_terminate"]["min_iter"] < settings["trainer"]["max_epochs"]


def test_validation_decides_and_nothing_else(sweep: Sweep) -> None:
    assert sweep["metric"] == {"name": "val/acc", "goal": "maximize"}


def test_sam_resnets_augmentation_is_one_of_the_candidates() -> None:
    path = ROOT / "experiments" / "sweeps" / "sam_resnet_augmentation.yaml"
    parameters = yaml.safe_load(path.read_text())["parameters"]
    preset = yaml.safe_load((ROOT / "experiments" / "configs" / "sam_resnet.yaml").read_text())
    paper = {"crop_padding": 4, "mixup_p": 1.0} | preset["data"]
    for name, parameter in parameters.items():
        assert paper[name.removeprefix("data.")] in parameter["values"], name


@pytest.fixture
def under_an_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Set the environment variables that W&B's agent sets."""
    drawn = tmp_path / "config-1mbku38n.yaml"
    drawn.write_text("wandb_version: 1\nmodel.lr:\n  value: 0.05\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "1mbku38n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(drawn))
    wandb.teardown()  # wandb reads the environment once
    yield
    wandb.teardown()


@pytest.mark.usefixtures("under_an_agent")
def test_the_agents_id_is_the_runs_id_and_stays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "wandb_id.txt").write_text("earlier1")
    config = {"arch": "sam_resnet", "model": {"lr": 0.05}}

    def begin() -> Any:
        logger = wandb_logger(folder, "offline", config)
        assert logger
        return logger.experiment

    run = begin()
    assert (run.id, run.sweep_id) == ("1mbku38n", "sweep123")
    assert run.config["model"] == {"lr": 0.05}
    assert run.config["model.lr"] == 0.05  # from the agent
    run.finish()
    assert (folder / "wandb_id.txt").read_text() == "1mbku38n"

    # A user resumes the run without the agent.
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.delenv(name)
    wandb.teardown()
    run = begin()
    assert (run.id, run.sweep_id) == ("1mbku38n", None)
    run.finish()


@pytest.mark.usefixtures("under_an_agent")
def test_runs_of_several_agents_have_different_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder() -> Path:
        return read_launch(["--arch=resnet", f"--output={tmp_path}"]).folder

    assert folder() == tmp_path / "resnet-1mbku38n"
    monkeypatch.setenv("WANDB_RUN_ID", "2u1g3j1c")
    assert folder() == tmp_path / "resnet-2u1g3j1c"
