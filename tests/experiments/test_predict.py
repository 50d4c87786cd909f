import ast
import csv
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.synthetic import SYNTHETIC_CLASSES, synthetic_cifar10
from experiments.exports.exporting import of_weights, pretrained
from experiments.inference.finished import open_run
from experiments.inference.unlabelled import UnlabelledImages
from experiments.predict import main, show
from experiments.records.record import Evaluation, write_record

Predict = Callable[..., None]


@pytest.fixture(scope="module")
def run(experiment: Callable[..., object]) -> Path:
    """The folder of a tiny finished run with an average."""
    return experiment("--name=predict").folder  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def pixels(run: Path) -> np.ndarray:
    """The run's 300 test images (N, 32, 32, 3)."""
    images, _ = synthetic_cifar10("test", per_class=30)
    return images.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def predict(
    run: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Predict:
    """Call the command with the run, in a folder with the run's test images as set.pkl."""
    monkeypatch.chdir(tmp_path)
    Path("set.pkl").write_bytes(pickle.dumps({b"data": pixels}))

    def predict(*flags: str, run: str = str(run)) -> None:
        monkeypatch.setattr(sys, "argv", ["experiments/predict.py", run, *flags])
        main()

    return predict


@pytest.mark.parametrize(("strategy", "weights"), [("plain", "raw"), ("ema", "ema")])
def test_a_submission_contains_the_predictions_on_its_test_images(
    predict: Predict, run: Path, strategy: str, weights: str
) -> None:
    predict("set.pkl", "--strategy", strategy)
    rows = list(csv.reader(Path("submission.csv").read_text().splitlines()))
    logits = np.load(run / "predictions.npz")[f"test_{weights}"]
    assert rows[0] == ["ID", "Labels"]
    assert rows[1:] == [[str(i), str(label)] for i, label in enumerate(logits.argmax(1))]


def test_the_weights_that_validation_selected_are_the_default(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    predict("set.pkl")
    assert "predict, plain" in capsys.readouterr().out


def test_the_choice_of_an_evaluation_comes_first(
    predict: Predict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported, evaluated = tmp_path / "exported", tmp_path / "evaluated"
    shutil.copytree(run, evaluated)
    pretrained(open_run(run), "ema", "float32").save_pretrained(exported)
    write_record(of_weights(open_run(run).record, "ema"), exported / "result.json")
    evaluation = Evaluation(
        runs=["predict"], command="", source="synthetic", commit="", dirty=False, versions={},
        device="", precision="32-true", finished="", baseline="plain", chosen="ema+flip",
        strategies={},
    )  # fmt: skip
    for folder, title in ((evaluated, "predict, ema+flip"), (exported, "exported, flip")):
        write_record(evaluation, folder / "evaluation.json")
        predict("set.pkl", "--probabilities", f"--output={folder.name}.csv", run=str(folder))
        assert title in capsys.readouterr().out
    assert Path("exported.csv").read_text() == Path("evaluated.csv").read_text()


def test_probabilities_are_the_softmax_of_the_runs_logits(predict: Predict, run: Path) -> None:
    predict("set.pkl", "--strategy=ema", "--probabilities", "--output=out.csv")
    rows = list(csv.reader(Path("out.csv").read_text().splitlines()))
    logits = torch.from_numpy(np.load(run / "predictions.npz")["test_ema"])
    assert rows[0] == ["ID", "class", *SYNTHETIC_CLASSES]
    assert [row[1] for row in rows[1:]] == [SYNTHETIC_CLASSES[i] for i in logits.argmax(1)]
    found = torch.tensor([[float(x) for x in row[2:]] for row in rows[1:]])
    torch.testing.assert_close(found, logits.softmax(1), atol=1e-5, rtol=0)


def test_a_strategy_averages_the_networks_probabilities(predict: Predict, run: Path) -> None:
    predict("set.pkl", "--strategy=ensemble", "--probabilities")
    rows = csv.reader(Path("submission.csv").read_text().splitlines()[1:])
    logits = np.load(run / "predictions.npz")
    raw, ema = (torch.from_numpy(logits[f"test_{name}"]) for name in ("raw", "ema"))
    expected = (0.4 * raw.log_softmax(1) + 0.6 * ema.log_softmax(1)).softmax(1)
    found = torch.tensor([[float(x) for x in row[2:]] for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_pictures_are_classified_in_the_terminal(
    predict: Predict, pixels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("[bold]").mkdir()  # names are text, not markup
    Image.fromarray(pixels[0]).save("[bold]/a.png")
    Image.fromarray(pixels[1]).resize((50, 70)).save("[bold]/b.jpg")
    predict("[bold]", "--top=1")
    shown = capsys.readouterr().out
    assert "[bold]/a.png" in shown
    assert "1 of 2 images had another size" in shown
    assert shown.count("%") == 2
    assert Path("submission.csv").read_text().splitlines()[2].startswith("[bold]/b.jpg,")


def test_names_of_classes_are_text_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    found = UnlabelledImages(torch.zeros(1, 3, 32, 32), ["a"], resized=0, unreadable=[])
    show(found, torch.tensor([[0.75, 0.25]]), ("[red]x", "new\nline"), 2, "run")
    shown = capsys.readouterr().out
    assert "[red]x 75.0%" in shown
    assert "new\\nline 25.0%" in shown


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trace",)


def hostile() -> list[str]:
    Path("hostile.pkl").write_bytes(pickle.dumps({"data": Payload()}))
    return ["hostile.pkl"]


def corrupt() -> list[str]:
    Path("corrupt.png").write_bytes(b"\x89PNG")
    return ["corrupt.png"]


def wrong_shape() -> list[str]:
    Path("wrong.pkl").write_bytes(pickle.dumps({"data": np.zeros((4, 3071), np.uint8)}))
    return ["set.pkl", "wrong.pkl"]


def empty() -> list[str]:
    Path("empty").mkdir()
    return ["empty"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (hostile, "hostile.pkl is neither .+: it asks for posix.mkdir"),
        (corrupt, "corrupt.png is not a picture"),
        (wrong_shape, r"wrong.pkl holds uint8 \(4, 3071\), not"),
        (empty, "empty holds no pictures"),
        (lambda: ["none.pkl"], "none.pkl does not exist"),
        (lambda: ["set.pkl", "--strategy=swa"], "predict has no swa weights"),
        (lambda: ["set.pkl", "--strategy=esemble"], r"esemble is unknown \(did you mean ensemble"),
        (lambda: ["set.pkl", "--top=0"], "--top must be 1 or more, got 0"),
        (lambda: ["set.pkl", "--top=11"], "--top must be in 1 to 10, got 11"),
        (lambda: ["set.pkl", "--output=none/out.csv"], "there is no folder none"),
        (lambda: ["set.pkl", "--output=."], "--output . is a folder: name a file, such as"),
        (lambda: ["set.pkl", "--output=./set.pkl"], "--output set.pkl is an INPUT, which it"),
        (lambda: [], "required: INPUT"),
    ],
    ids=[
        "hostile",
        "corrupt",
        "shape",
        "empty",
        "missing",
        "swa",
        "strategy",
        "top",
        "top-classes",
        "output",
        "output-folder",
        "output-input",
        "no",
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    predict: Predict,
    refusal: Callable[..., str],
    flags: Callable[[], list[str]],
    message: str,
) -> None:
    given = flags()
    before = sorted(Path().iterdir())
    assert re.search(message, refusal(*given, act=predict))
    assert sorted(Path().iterdir()) == before


def test_a_folders_unreadable_pictures_are_listed_and_the_others_classified(
    predict: Predict, pixels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    for i in range(3):
        Image.fromarray(pixels[i]).save(f"folder/{i}.png")
    Path("folder/1.png").write_bytes(b"\x89PNG")
    with pytest.raises(SystemExit) as end:
        predict("folder")
    assert end.value.code == 1
    assert [row.partition(",")[0] for row in Path("submission.csv").read_text().splitlines()] == [
        "ID", "folder/0.png", "folder/2.png",
    ]  # fmt: skip
    title, line = capsys.readouterr().err.splitlines()
    assert title == "Unreadable pictures: 1"
    assert line.startswith("  folder/1.png is not a picture")
    with pytest.raises(SystemExit) as end:
        predict("folder", "--skip-unreadable")
    assert end.value.code == 0


IMPORTED = """
import sys
from experiments.{command} import main
sys.argv = ["experiments/{command}.py", *sys.argv[1:]]
try:
    main()
finally:
    print(sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


def imported(command: str, *arguments: str) -> set[str]:
    """The packages that a successful command imported."""
    program = [sys.executable, "-c", IMPORTED.format(command=command), *arguments]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        program, capture_output=True, text=True, check=True, env=os.environ | path
    )
    return set(ast.literal_eval(done.stderr))


def test_prediction_imports_torch_and_no_lightning(predict: Predict, run: Path) -> None:
    Image.new("RGB", (100, 90), "red").save("a.webp")
    packages = imported("predict", str(run), "a.webp", "--strategy=tta+ensemble")
    assert len(Path("submission.csv").read_text().splitlines()) == 2
    assert packages >= {"torch", "PIL"}
    heavy = {"lightning", "wandb", "torchmetrics", "torchvision", "matplotlib", "scipy"}
    assert not packages & heavy


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_help_imports_no_torch(command: str) -> None:
    assert not imported(command, "--help") & {"torch", "lightning", "rich", "PIL"}


def test_a_folder_without_a_finished_run_is_named(
    predict: Predict, refusal: Callable[..., str]
) -> None:
    assert refusal(act=lambda: predict("set.pkl", run="none")).startswith("none is not a folder")
    assert "holds no finished run" in refusal(act=lambda: predict("set.pkl", run="."))


def test_an_exported_network_predicts_as_its_run(
    predict: Predict, run: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    folder = tmp_path / "exported"
    pretrained(open_run(run), "raw", "float32").save_pretrained(folder)
    predict("set.pkl", "--probabilities", "--output=exported.csv", run=str(folder))
    predict("set.pkl", "--probabilities", "--output=run.csv", "--strategy=plain")
    assert Path("exported.csv").read_text() == Path("run.csv").read_text()
    predict("set.pkl", "--strategy=six-view", run=str(folder))
    line = refusal("set.pkl", "--strategy=ema", act=lambda *x: predict(*x, run=str(folder)))
    assert line == f"{folder} has a single network: name a --strategy without ema"
