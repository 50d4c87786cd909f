import json
import subprocess
from dataclasses import replace

import pytest
import torch

from experiments.console import UserError
from experiments.records import provenance
from experiments.records.parsing import MAX_BYTES
from experiments.records.provenance import describe_device, git_state, versions
from experiments.records.record import (
    Record,
    Score,
    read_any,
    read_record,
    write_atomically,
    write_record,
)

SCORE = Score(0.1 + 0.2, nll=1 / 3, ece=0.0, images=5_000, checkpoint="best.ckpt", epoch=3)
RECORD = Record(
    arch="sam_resnet",
    name="a",
    command=["python experiments/run.py --arch sam_resnet"],
    config={"model": {"lr": 1e-5, "blocks": [4, 4, 3]}, "ema": False, "ckpt_path": None},
    quick=False,
    source="synthetic",
    commit="0" * 40,
    dirty=True,
    versions={"python": "3.11"},
    device="cpu",
    precision="32-true",
    seed=0,
    parameters=4_733_610,
    operations_per_image=10**9,
    epochs=3,
    steps=9,
    train_images=1_152,
    training_seconds=1.5,
    finished="2024-01-01T00:00:00+00:00",
    selected="ema",
    scores={"val": {"raw": SCORE, "ema": replace(SCORE, accuracy=0.5)}, "test": {"raw": SCORE}},
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit of one file, used as the code's folder."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "One.")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return git


def test_a_record_comes_back_as_it_was_written(tmp_path):
    write_record(RECORD, tmp_path / "result.json")
    assert read_record(tmp_path / "result.json") == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_steps_are_counted_for_whole_epochs():
    # 1,152 images are 9 batches of 128, or 5 steps of two batches; the last has one batch.
    config = {"data": {"batch_size": 128}, "trainer": {"accumulate_grad_batches": 2}}
    assert replace(RECORD, config=config).steps_per_epoch == 5
    config["trainer"]["accumulate_grad_batches"] = 1
    # --trainer.max_steps 12 ended the second of two epochs early.
    assert replace(RECORD, config=config, epochs=2, steps=12).steps_per_epoch == 9


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_record_with_other_fields_is_refused(tmp_path, change):
    path = tmp_path / "result.json"
    write_record(RECORD, path)
    fields = json.loads(path.read_text())
    if change == "missing":
        del fields["seed"]
    else:
        fields["sead"] = 1
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"seed is missing|sead is unknown"):
        read_record(path)


def test_an_interrupted_write_keeps_the_previous_file(tmp_path):
    path = tmp_path / "config.yaml"
    write_atomically(path, "seed: 1\n")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "seed: 2\n" + "x" * 100_000 + "\ud800")
    assert path.read_text() == "seed: 1\n"


def test_a_clean_checkout_is_its_commit(repository, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "result.json").touch()  # untracked files are not the code
    assert git_state() == (repository("rev-parse", "HEAD"), False)


@pytest.mark.parametrize("stage", [False, True])
def test_a_changed_file_makes_it_dirty(repository, tmp_path, stage):
    (tmp_path / "code.py").write_text("x = 2\n")
    if stage:
        repository("add", ".")
    assert git_state() == (repository("rev-parse", "HEAD"), True)


def test_changed_results_do_not_make_a_commit_dirty(repository, tmp_path):
    page = tmp_path / "experiments" / "results" / "CLAIMS.md"
    page.parent.mkdir(parents=True)
    page.write_text("one\n")
    repository("add", ".")
    repository("commit", "-q", "-m", "Two.")
    page.write_text("two\n")
    assert git_state() == (repository("rev-parse", "HEAD"), False)


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == ("unknown", True)


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() == ("unknown", True)


def test_versions_equal_the_installed_ones():
    assert versions()["torch"] == torch.__version__
    packages = {"torch", "torchvision", "lightning", "torchmetrics"}
    assert versions().keys() == {"python", "blas", *packages}


def test_the_blas_is_named_with_the_instructions_that_torch_uses(monkeypatch):
    config = "Math Kernel Library Version 2024.2-Product\n BLAS_INFO=mkl, BUILD_TYPE=Release"
    monkeypatch.setattr(torch.__config__, "show", lambda: config)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert versions()["blas"] == "mkl 2024.2 (AVX2)"
    monkeypatch.setattr(torch.__config__, "show", lambda: "BLAS_INFO=accelerate")
    assert versions()["blas"] == "accelerate (AVX2)"


def test_the_cpu_is_described_with_its_threads():
    assert f"({torch.get_num_threads()} of " in describe_device()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[1, 2", "\x00", ""])
def test_a_file_without_a_record_gives_one_line(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    for read in (read_record, read_any):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path} is not a valid ")
        assert len(str(error.value).splitlines()) == 1


def test_a_too_large_file_is_not_read(tmp_path):
    path = tmp_path / "result.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=f"{path} must have at most 20,000,000 bytes"):
        read_record(path)
