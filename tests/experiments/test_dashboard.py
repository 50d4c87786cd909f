"""The dashboard shows the values that runs log, read from the files of offline W&B runs."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import wandb
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces.internal import View

import datamodules.cifar10
import experiments.evaluate
import experiments.inference.evaluation
from datamodules.synthetic import SYNTHETIC_CLASSES
from experiments import dashboard
from experiments.inference.finished import FinishedRun, open_run
from experiments.tracking.panels import COLUMNS, build_workspace, is_logged, keys_of
from experiments.tracking.wandb_file import logged_rows
from experiments.tracking.wandb_keys import AUGMENTED, CALIBRATION, CONFUSION, HARDEST, STRATEGIES

ROOT = Path(__file__).parents[2]
W_AND_B = ("--wandb=offline", "--data.eval_batch_size=100")


@dataclass(frozen=True)
class Logged:
    """A run, and all rows that it logged to W&B."""

    run: FinishedRun
    rows: list[dict[str, Any]]

    @property
    def results(self) -> dict[str, Any]:
        """The row of results that the run logged after training."""
        (row,) = [row for row in self.rows if "parameters" in row]
        return row

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a logged table."""
        (kept,) = [row[name] for row in self.rows if name in row]
        (file,) = self.run.folder.glob(f"wandb/offline-run-*/files/{kept['path']}")
        content = json.loads(file.read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def logged(folder: Path) -> Logged:
    wandb.teardown()  # before, its service may keep the last rows in memory
    return Logged(open_run(folder), list(logged_rows(folder)))


@pytest.fixture(scope="session")
def with_ema(experiment: Callable[..., Any], few_images: Callable[..., Any]) -> Logged:
    """A run of SAMResNet with augmentation and EMA, and its evaluation."""
    folder = experiment(*W_AND_B, pictures=True).folder
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["experiments/evaluate.py", str(folder)])
        patch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
        patch.setattr(experiments.inference.evaluation, "TIMED", 50)
        experiments.evaluate.main()
    return logged(folder)


@pytest.fixture(scope="session")
def with_swa(experiment: Callable[..., Any]) -> Logged:
    """A run of EnhancedEfficientResNet without mixing, and with SWA instead of EMA."""
    flags = ("--arch=enhanced_efficient_resnet", "--model.base_width=4", "--data.mixup_p=0")
    flags += ("--data.cutmix_p=0", "--ema=false", "--swa.start=0.5", "--swa.lr=0.01")
    return logged(experiment(*flags, *W_AND_B, pictures=True).folder)


@pytest.fixture
def workspace() -> ws.Workspace:
    return build_workspace("somebody", "sub5m")


def panels(workspace: ws.Workspace) -> Iterator[Any]:
    for section in workspace.sections:
        yield from section.panels


def shown(workspace: ws.Workspace) -> set[str]:
    return {*COLUMNS, *(key for panel in panels(workspace) for key in keys_of(panel))}


def test_every_key_that_the_dashboard_names_is_logged(
    workspace: ws.Workspace, with_ema: Logged, with_swa: Logged
) -> None:
    keys = {key for run in (with_ema, with_swa) for row in run.rows for key in row}
    assert [key for key in shown(workspace) if not is_logged(key, keys)] == []
    pinned = {f"summary:{key}" for key in COLUMNS} | {"run:displayName"}
    assert set(workspace.runset_settings.pinned_columns) == pinned


def test_a_panel_shows_everything_logged_except_single_numbers(
    workspace: ws.Workspace, with_ema: Logged, with_swa: Logged
) -> None:
    named = shown(workspace)
    for run in (with_ema, with_swa):
        keys = {key for row in run.rows for key in row if not key.startswith("_")}
        rest = {key for key in keys if not any(re.fullmatch(name, key) for name in named)}
        figures = r"(val|test)/(raw|ema|swa|selected)/(accuracy|nll|ece)|training_seconds"
        assert [key for key in rest if not re.fullmatch(figures, key)] == []


def test_a_curve_is_logged_with_its_x_axis(
    workspace: ws.Workspace, with_ema: Logged, with_swa: Logged
) -> None:
    lines = [panel for panel in panels(workspace) if type(panel).__name__ == "LinePlot"]
    assert len(lines) == 6
    for panel in lines:
        over, *curves = keys_of(panel)
        for row in with_ema.rows + with_swa.rows:
            assert over in row or not any(is_logged(curve, row) for curve in curves)


def test_epochs_are_counted_from_0(with_ema: Logged) -> None:
    assert [row["epoch"] for row in with_ema.rows if "val/acc" in row] == [0, 1]


def test_the_papers_claim_is_a_level_line_with_the_name_of_its_images(
    with_ema: Logged, with_swa: Logged
) -> None:
    for run, key, value in (
        (with_ema, "claim/kaggle_test_acc_not_comparable", 0.9299),
        (with_swa, "claim/val_acc", 0.9530),
    ):
        claims = [
            {k: v for k, v in row.items() if k.startswith("claim/")}
            for row in run.rows
            if "val/acc" in row
        ]
        assert claims == [{key: value}] * 2


@pytest.mark.parametrize("name", ["with_ema", "with_swa"])
def test_the_figures_are_the_records(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    record, results = run.run.record, run.results
    for split, scores in record.scores.items():
        for weights, score in [*scores.items(), ("selected", scores[record.selected])]:
            for measure in ("accuracy", "nll", "ece"):
                value = results[f"{split}/{weights}/{measure}"]
                assert value == pytest.approx(getattr(score, measure))
    assert results["parameters"] == record.parameters
    assert results["operations_per_image"] == record.operations_per_image
    assert results["trainer/global_step"] == record.steps


def test_the_calibration_chart_contains_the_calibration_error(with_ema: Logged) -> None:
    table = with_ema.table(CALIBRATION.table)
    for weights, score in with_ema.run.record.scores["test"].items():
        bins = [row for row in table if row["weights"] == weights]
        assert sum(row["images"] for row in bins) == score.images == 300
        gaps = [abs(row["confidence"] - row["accuracy"]) * row["images"] for row in bins]
        assert sum(gaps) / 300 == pytest.approx(score.ece, abs=1e-6)
    diagonal = [row for row in table if row["weights"] == "calibrated"]
    assert [(row["confidence"], row["accuracy"]) for row in diagonal] == [(0, 0), (1, 1)]


def test_the_confusion_matrix_is_of_the_selected_weights(with_ema: Logged) -> None:
    table = with_ema.table(CONFUSION.table)
    right = sum(row["images"] for row in table if row["actual"] == row["predicted"])
    record = with_ema.run.record
    assert right / 300 == pytest.approx(record.scores["test"][record.selected].accuracy)
    assert {row["actual"] for row in table} == {row["predicted"] for row in table}
    assert len(table) == 100


def test_strategies_are_logged_in_the_evaluated_run(with_ema: Logged) -> None:
    folder = with_ema.run.folder
    identity = (folder / "wandb_id.txt").read_text()
    names = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert len(names) == 2
    assert all(name.endswith(f"-{identity}") for name in names)
    evaluation = with_ema.run.evaluation()
    assert evaluation
    table = {row["strategy"]: row for row in with_ema.table(STRATEGIES.table)}
    assert table.keys() == evaluation.strategies.keys()
    assert [name for name, row in table.items() if row["chosen"]] == [evaluation.chosen]
    for name, result in evaluation.strategies.items():
        row = table[name]
        assert row["test_gain"] == pytest.approx(100 * result.scores["test"].gain)
        assert row["val_accuracy"] == pytest.approx(100 * result.scores["val"].accuracy)
        assert row["test_ece_fitted"] == pytest.approx(result.scores["test"].fitted.ece)  # type: ignore[union-attr]


def test_charts_name_columns_of_their_tables(with_ema: Logged) -> None:
    for chart in (CONFUSION, CALIBRATION, STRATEGIES):
        assert set(chart.fields.values()) <= with_ema.table(chart.table)[0].keys()


def test_images_are_shown_with_the_predicted_class(with_ema: Logged) -> None:
    grid, hardest = with_ema.results[AUGMENTED], with_ema.results[HARDEST]
    assert (grid["width"], grid["height"]) == (8 * 34 + 2, 4 * 34 + 2)
    assert (hardest["count"], hardest["width"], hardest["height"]) == (24, 32, 32)
    for caption in hardest["captions"]:
        found = re.fullmatch(r"(.+), taken for (.+) \(\d+%\)", caption)
        assert found
        assert set(found.groups()) <= set(SYNTHETIC_CLASSES)


def test_an_evaluation_that_w_and_b_rejects_is_kept_and_gives_one_line(
    with_ema: Logged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)
    record = with_ema.run.record
    online = FinishedRun(
        with_ema.run.folder, replace(record, config=record.config | {"wandb": "online"})
    )
    evaluation = online.evaluation()
    assert evaluation
    experiments.evaluate.send(online, evaluation)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: recorded, but not sent to W&B: ")


def test_an_evaluation_of_a_run_without_w_and_b_sends_nothing(
    with_ema: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was asked"))
    record, evaluation = with_ema.run.record, with_ema.run.evaluation()
    assert evaluation
    experiments.evaluate.send(FinishedRun(tmp_path, record), evaluation)
    off = replace(record, config=record.config | {"wandb": "disabled"})
    experiments.evaluate.send(FinishedRun(with_ema.run.folder, off), evaluation)


def test_the_workspace_is_restored_from_the_sent_data(workspace: ws.Workspace) -> None:
    sent = workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)
    again = ws.Workspace._from_model(View.model_validate_json(sent))
    assert again._to_model().spec == workspace._to_model().spec
    assert [type(panel) for panel in panels(again)] == [type(x) for x in panels(workspace)]


def run_main(*arguments: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiments/dashboard.py", *map(str, arguments)])
        dashboard.main()


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Api", "login", "init", "setup"):
        monkeypatch.setattr(wandb, name, lambda *_, **__: pytest.fail("W&B was asked"))


@pytest.mark.usefixtures("without_network")
def test_it_is_printed_without_an_account(
    workspace: ws.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main()
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in [section.name for section in workspace.sections] + sorted(shown(workspace)):
        assert name in printed, name
    assert "not logged" not in printed


@pytest.mark.usefixtures("without_network")
def test_keys_that_a_run_has_not_logged_are_marked(
    with_ema: Logged, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main(with_ema.run.folder)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    lacking = set(re.findall(r"(\S+) \(not logged\)", printed))
    measures = {f"test/swa/{measure}" for measure in ("accuracy", "nll", "ece")}
    assert lacking == {"claim/val_acc", "val/acc_swa", "val/loss_swa", "train/acc", *measures}


@pytest.mark.usefixtures("without_network")
def test_its_json_equals_the_sent_data(
    workspace: ws.Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main("--json")
    sent = json.loads(capsys.readouterr().out)["section"]["panelBankConfig"]["sections"]
    first = sent[0]["panels"][0]
    assert first["config"]["metrics"] == workspace.sections[0].panels[0].y
    assert first["config"]["xAxis"] == "epoch"


def test_a_mistake_gives_one_line(
    refusal: Callable[..., str], tmp_path: Path, with_ema: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refusal(tmp_path, act=run_main)
    assert line.startswith(f"{tmp_path} has no W&B files")
    assert refusal("--jsno", act=run_main) == "unrecognized arguments: --jsno"
    assert refusal(tmp_path, "--json", act=run_main).endswith("cannot be used with --json")
    damaged = tmp_path / "wandb" / "offline-run-1" / "run-1.wandb"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"something else")
    assert refusal(tmp_path, act=run_main).startswith(f"{damaged} is not a file of W&B")
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda _: None)
    line = refusal(act=run_main)
    assert line.startswith("the dashboard needs the package wandb: install it with pip install -r")


def test_the_file_of_an_unfinished_run_is_read_to_its_end(with_swa: Logged, tmp_path: Path) -> None:
    (file,) = with_swa.run.folder.glob("wandb/offline-run-*/*.wandb")
    copy = tmp_path / "wandb" / "offline-run-1" / "run-1.wandb"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    begun, whole = (
        {key for row in logged_rows(folder) for key in row}
        for folder in (tmp_path, with_swa.run.folder)
    )
    assert set() < begun < whole


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a fake W&B server, and the list of the requested changes."""
    asked: list[dict[str, Any]] = []
    account = {"id": "1", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}"}

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            # W&B's telemetry uses another path and gets an empty answer.
            request = json.loads(body) if self.path == "/graphql" else {"query": ""}
            answer: dict[str, Any] = {"data": {"viewer": account | {"teams": {"edges": []}}}}
            if "mutation" in request["query"]:
                asked.append(request["variables"])
                answer = {"data": {"upsertView": {"view": {"id": "2", "name": "nw-new-v"}}}}
                if asked[-1]["projectName"] == "missing":
                    answer = {"data": None, "errors": [{"message": "project not found"}]}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()


def save(tmp_path: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `--save` in a new process; only `environment` can contain an account."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    clean |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), **environment}
    command = [sys.executable, "experiments/dashboard.py", "--save", *flags]
    return subprocess.run(
        command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=600
    )


def test_it_is_saved_for_the_account_that_is_logged_in(
    server: tuple[str, list[dict[str, Any]]], tmp_path: Path, workspace: ws.Workspace
) -> None:
    address, asked = server
    account = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
    saved = save(tmp_path, **account)
    assert (saved.returncode, saved.stderr) == (0, "")
    assert saved.stdout == f"{address}/somebody/sub5m?nw=new\n"
    (view,) = asked
    assert (view["entityName"], view["projectName"]) == ("somebody", "sub5m")
    again = View(
        entity="", project="", display_name="", name="", id="", spec=json.loads(view["spec"])
    )
    assert shown(ws.Workspace._from_model(again)) == shown(workspace)

    refused = save(tmp_path, "--entity=team", "--project=missing", **account)
    assert refused.returncode == 2
    assert refused.stderr == "error: --save: input: project not found\n"
    assert (asked[1]["entityName"], asked[1]["projectName"]) == ("team", "missing")


def test_without_an_account_saving_is_refused_in_one_line(tmp_path: Path) -> None:
    refused = save(tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --save: not logged in to W&B, or W&B is offline here: run `wandb login`\n"
    )
