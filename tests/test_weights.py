"""The trained networks in the folder `weights`: files, accuracy, and use without this project."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.inference.evaluating import evaluate_run
from experiments.inference.finished import open_network, open_run
from experiments.records.integrity import check_checksums

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "weights").glob("*/model.safetensors"))
FILES = ("README.md", "config.json", "model.safetensors", "result.json")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_files_of_a_network_agree_with_its_record(folder: Path) -> None:
    check_checksums(folder, FILES)
    run = open_run(folder)
    record, network = run.record, run.network()
    assert (record.arch, record.dirty, record.source) == (folder.name, False, "cifar10")
    trained = [x for x in network.parameters() if x.requires_grad]
    assert sum(x.numel() for x in trained) == record.parameters
    assert (folder / "model.safetensors").stat().st_size < 2.3 * record.parameters + 20_000
    evaluation = run.evaluation()
    assert evaluation is not None
    accuracy = evaluation.strategies["plain"].scores["test"].accuracy
    assert accuracy == record.scores["test"]["raw"].accuracy


@pytest.mark.real_data
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_network_has_the_accuracy_of_its_record(folder: Path, cifar10_root: Path) -> None:
    """The same to the digit on the same machine; other processors round otherwise."""
    run = open_run(folder)
    found = evaluate_run(run, ["plain"], str(cifar10_root), None).strategies["plain"]
    recorded = run.record.scores["test"]["raw"].accuracy
    assert found.scores["test"].accuracy == pytest.approx(recorded, abs=0.002)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_page_uses_a_network_without_this_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    assert "experiments" not in code
    assert "lightning" not in code
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(code.replace("base_1m", folder.name), names)
    images = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        expected = open_network(folder).network(images)
        torch.testing.assert_close(names["network"](images), expected, atol=1e-4, rtol=0)
