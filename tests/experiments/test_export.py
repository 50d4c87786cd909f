import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from torch import Tensor

import datamodules.cifar10
import experiments.inference.evaluation
from datamodules.synthetic import SYNTHETIC_CLASSES, synthetic_cifar10
from experiments.console import UserError
from experiments.evaluate import main as evaluate
from experiments.export import main
from experiments.exports import exporting
from experiments.exports.exporting import compare, in_32_bits, pretrained
from experiments.exports.model_card import model_card
from experiments.inference.finished import FinishedRun, open_network, open_run
from experiments.inference.strategies import STRATEGIES
from experiments.records.record import read_evaluation
from lightning_modules.pretrained import PretrainedClassifier

Export = Callable[..., None]
Exported = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(experiment: Callable[..., Any]) -> FinishedRun:
    """A tiny finished run with an average."""
    made = experiment("--name=export", "--model.blocks=[1, 1, 1]", "--model.channels_last=true")
    return open_run(made.folder)


@pytest.fixture(scope="module")
def pixels(run: FinishedRun) -> Tensor:
    """The run's 300 test images, in [0, 1]."""
    return synthetic_cifar10("test", per_class=30)[0] / 255


@pytest.fixture(scope="module")
def exported(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export and verify the run's average in this dtype; return the folder."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def exported(dtype: str) -> Path:
        flags = ["--weights=ema", f"--dtype={dtype}", f"--output={folder / dtype}", "--verify"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["experiments/export.py", str(run.folder), *flags])
            main()
        return folder / dtype

    return exported


def load(folder: Path, file: str) -> Callable[[Tensor], Tensor]:
    if file == "model.safetensors":
        return PretrainedClassifier.from_pretrained(folder, strict=True)
    if file == "model.pt2":
        return torch.export.load(folder / file).module()
    onnx.checker.check_model(folder / file, full_check=True)
    session = onnxruntime.InferenceSession(folder / file)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("file", ["model.safetensors", "model.pt2", "model.onnx"])
@pytest.mark.parametrize("images", [1, 2, 300])
@torch.inference_mode()
def test_every_file_computes_the_runs_logits_for_any_number_of_images(
    exported: Exported, run: FinishedRun, pixels: Tensor, file: str, images: int
) -> None:
    expected = torch.from_numpy(np.load(run.folder / "predictions.npz")["test_ema"])
    logits = load(exported("float32"), file)(pixels[:images])
    torch.testing.assert_close(logits, expected[:images], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@torch.inference_mode()
def test_half_the_bits_are_half_the_size_and_the_rounded_weights(
    exported: Exported, run: FinishedRun, pixels: Tensor, dtype: torch.dtype
) -> None:
    half, full = exported(str(dtype).removeprefix("torch.")), exported("float32")
    halved = PretrainedClassifier.from_pretrained(half, strict=True)
    network = run.network("ema")
    norms = {name for name, x in network.named_modules() if isinstance(x, torch.nn.BatchNorm2d)}
    for name, weight in network.state_dict().items():
        found = halved.network.state_dict()[name]
        assert torch.equal(found, weight if name.rpartition(".")[0] in norms else weight.to(dtype))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    halves = sum(x.numel() for x in network.parameters()) - sum(
        x.numel() for name in norms for x in network.get_submodule(name).parameters()
    )
    assert sizes[0] - sizes[1] >= 2 * halves
    assert halved(pixels[:2]).dtype == torch.float32
    onnx_logits = load(half, "model.onnx")(pixels)
    torch.testing.assert_close(onnx_logits, in_32_bits(halved)(pixels), atol=1e-4, rtol=0)


def test_an_export_has_the_record_of_its_weights_and_their_accuracy(
    experiment: Callable[..., Any],
    few_images: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in bf16-mixed: BatchNorm keeps its 32 bits in training and in the export."""
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    monkeypatch.setattr(experiments.inference.evaluation, "TIMED", 50)
    made = experiment(
        *("--model.blocks=[1, 1, 1]", "--model.channels_last=true"),
        "--trainer.precision=bf16-mixed",
    )
    run = open_run(made.folder)
    folder = tmp_path / "export"
    flags = ["--weights=ema", "--dtype=bfloat16", "--only-safetensors", "--verify"]
    monkeypatch.setattr(sys, "argv", ["export.py", str(run.folder), *flags, f"--output={folder}"])
    main()
    files = ["README.md", "SHA256SUMS", "config.json", "model.safetensors", "result.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    record = open_run(folder).record
    assert record.weights == ["ema"]
    assert record.selected == "ema"
    assert record.scores["test"]["ema"] == run.record.scores["test"]["ema"]
    for path in (run.folder, folder):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(path)])
        evaluate()
    of_run, of_export = (
        read_evaluation(path / "evaluation.json").strategies for path in (run.folder, folder)
    )
    assert set(of_export) == {name for name in STRATEGIES if name.startswith("ema")}
    for name, found in of_export.items():
        for split, score in found.scores.items():
            assert score.accuracy == of_run[name].scores[split].accuracy
            assert score.as_it_is == of_run[name].scores[split].as_it_is


def test_an_export_with_another_networks_record_is_rejected(
    experiment: Callable[..., Any],
    exported: Exported,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(exported("float32"), tmp_path / "export")
    other = experiment("--model.blocks=[1, 1, 2]")
    shutil.copy(other.folder / "result.json", folder)
    with pytest.raises(UserError, match=r"model\.safetensors does not hold the weights of the"):
        open_run(folder).network("ema")


def test_a_loaded_network_can_predict_and_knows_its_classes(
    exported: Exported,
) -> None:
    model = PretrainedClassifier.from_pretrained(exported("float32"), strict=True)
    assert not model.training
    assert model.classes == SYNTHETIC_CLASSES
    config = json.loads((exported("float32") / "config.json").read_text())
    assert config["arch"] == "sam_resnet"
    assert config["hyper_parameters"]["blocks"] == [1, 1, 1]


def test_the_card_states_the_records_figures(exported: Exported, run: FinishedRun) -> None:
    card = ModelCard.load(exported("bfloat16") / "README.md")
    score = run.record.scores["test"]["ema"]
    figures = f"{score.accuracy:.2%} | {score.nll:.4f} | {score.ece:.4f} | 300"
    assert f"| test | ema | {figures} |" in card.text
    assert f"{run.record.parameters:,} parameters" in card.text
    assert "in bfloat16" in card.text
    assert run.record.commit in card.text


def test_a_card_names_cifar10_only_if_trained_on_it(run: FinishedRun) -> None:
    model = pretrained(run, "raw", "float32")
    card = ModelCard(model_card(run.record, "raw", model))
    assert card.data.datasets is None
    assert card.data.eval_results is None
    assert "not on CIFAR-10" in card.text
    card = ModelCard(model_card(replace(run.record, source="cifar10"), "raw", model))
    assert card.data.datasets == ["cifar10"]
    accuracy = card.data.eval_results[0].metric_value
    assert accuracy == pytest.approx(run.record.scores["test"]["raw"].accuracy, abs=5e-5)
    assert "stand-in" not in card.text


@pytest.mark.parametrize(
    ("split", "said", "not_said"), [("val", "chose", "read once"), ("test", "read once", "chose")]
)
def test_a_card_explains_its_splits(run: FinishedRun, split: str, said: str, not_said: str) -> None:
    model = pretrained(run, "raw", "float32")
    card = model_card(replace(run.record, scores={split: run.record.scores[split]}), "raw", model)
    assert said in card
    assert not_said not in card


def test_files_of_other_weights_do_not_pass(
    exported: Exported, run: FinishedRun, pixels: Tensor
) -> None:
    images = (255 * pixels[:10]).byte()
    other = pretrained(run, "raw", "float32")
    with pytest.raises(UserError, match=r"^model\.safetensors loaded back differs from") as error:
        compare(exported("float32"), other, images, run.network("raw"))
    assert error.value.exit_code == 1


def test_a_presets_network_is_exported_by_the_name_of_its_architecture(
    experiment: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ("--model.base_width=8", "--trainer.max_epochs=1", "--trainer.precision=32-true")
    made = experiment("--arch=champion_cpu", *flags)
    run = open_run(made.folder)
    pretrained(run, "raw", "float32").save_pretrained(tmp_path)
    loaded = PretrainedClassifier.from_pretrained(tmp_path, strict=True)
    expected = torch.from_numpy(np.load(run.folder / "predictions.npz")["test_raw"])
    with torch.inference_mode():
        logits = loaded(synthetic_cifar10("test", per_class=30)[0] / 255)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.fixture
def export(run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.chdir(tmp_path)

    def export(*flags: str, run: str = str(run.folder)) -> None:
        monkeypatch.setattr(sys, "argv", ["experiments/export.py", run, "--output=out", *flags])
        main()

    return export


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"run": "none"}, "none is not a folder: name the folder of a run"),
        ({"weights": "swa"}, "has no swa weights"),
        ({"weights": "best"}, "invalid choice: 'best'"),
        ({"dtype": "int8"}, "invalid choice: 'int8'"),
        ({"root": "data"}, "--root data needs --verify"),
        ({"push": "me/mine"}, "--push needs a login on Hugging Face's Hub"),
        ({"output": "/dev/null/out"}, "--output /dev/null/out cannot be written: "),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    export: Export,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setattr(exporting, "get_token", lambda: None)
    run = {"run": flags["run"]} if "run" in flags else {}
    given = [f"--{name}={value}" for name, value in flags.items() if name != "run"]
    assert message in refusal(*given, act=partial(export, **run))
    assert list(Path().iterdir()) == []


def test_an_existing_export_is_not_overwritten(export: Export, refusal: Callable[..., str]) -> None:
    Path("out").mkdir()
    assert refusal(act=export).startswith("out exists: remove it")


def test_without_the_extra_the_packages_are_named(
    export: Export, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    assert (
        refusal(act=export) == "exporting needs onnx, onnxscript: pip install -r requirements.txt"
    )


def test_a_hub_out_of_reach_is_one_line(
    tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = partial(HfApi, endpoint="http://127.0.0.1:9", token="none")
    monkeypatch.setattr(exporting, "HfApi", api)
    answer = refusal(act=lambda: exporting.push(tmp_path, "me/mine"))
    assert answer.startswith(f"{tmp_path} is not on the Hub: ")


def test_one_flipped_bit_in_a_checkpoint_is_found(run: FinishedRun, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    copy, path = open_run(folder), folder / "best.ckpt"
    whole = path.read_bytes()
    copy.network()
    # The last 15 bytes are the checksum.
    for position in random.Random(0).sample(range(8 * (len(whole) - 15)), 40):
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            copy.network()


def test_a_changed_file_of_an_export_is_found(exported: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(exported("float32"), tmp_path / "copy")
    if tool := shutil.which("sha256sum"):
        subprocess.run([tool, "-c", "SHA256SUMS"], cwd=folder, check=True)
    open_network(folder)
    for name in ("model.safetensors", "config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole.replace(whole[-9:], bytes(reversed(whole[-9:]))))
        with pytest.raises(UserError, match=f"{name} was changed or damaged: see SHA256SUMS"):
            open_network(folder)
        (folder / name).write_bytes(whole)
