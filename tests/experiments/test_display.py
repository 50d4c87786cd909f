"""Progress: the lines of a run, the remaining time, and characters that an encoding lacks."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from experiments import console
from experiments.console import duration, track
from experiments.training import display
from experiments.training.display import seconds_left

ROOT = Path(__file__).parents[2]
SHOWN = ("--trainer.enable_progress_bar=true", "--trainer.max_epochs=3")


@pytest.fixture(scope="module")
def run(experiment):
    return experiment(*SHOWN)


def test_without_a_terminal_each_epoch_is_one_line_with_the_logged_results(run):
    with (run.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    logged = {
        name: [float(row[name]) for row in rows if row.get(name)]
        for name in ("train/loss", "train/acc_soft", "val/acc", "val/acc_ema", "lr-SGD")
    }
    lines = [line for line in run.output.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    for epoch, line in enumerate(lines):
        found = re.match(
            r"epoch (\d)/3: loss ([\d.]+), train \(mixed\) ([\d.]+)%, val ([\d.]+)%, "
            r"val ema ([\d.]+)%, lr ([\d.e-]+), (\d+) s(, \d+ s left)?$",
            line,
        )
        assert found, line
        assert int(found[1]) == epoch + 1
        assert float(found[2]) == pytest.approx(logged["train/loss"][epoch], abs=1e-4)
        for group, name in ((3, "train/acc_soft"), (4, "val/acc"), (5, "val/acc_ema")):
            assert float(found[group]) / 100 == pytest.approx(logged[name][epoch], abs=1e-4)
        if epoch < 2:  # the rate of the next epoch's first step
            assert float(found[6]) == pytest.approx(logged["lr-SGD"][3 * (epoch + 1)], rel=1e-2)
        assert bool(found[8]) == (epoch < 2)


def test_a_partial_validation_is_announced(run, experiment):
    assert "a part of the images" not in run.output
    line = "on a part of the images (--trainer.limit_val_batches 1), the table on all"
    assert line in experiment(*SHOWN, "--trainer.limit_val_batches=1").output


def test_a_resumed_run_numbers_its_epochs_on_and_repeats_no_line(experiment, command):
    class Stop(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise InterruptedError

    class Folder(Callback):
        def on_train_start(self, trainer, pl_module):
            self.path = Path(trainer.default_root_dir)

    folder = Folder()
    with pytest.raises(InterruptedError):
        experiment(*SHOWN, callbacks=[folder, Stop()])
    where = [f"--output={folder.path.parent}", f"--name={folder.path.name}"]
    resumed = command(["--arch=sam_resnet", *where, "--ckpt_path=last"])
    lines = [line for line in resumed.output.splitlines() if line.startswith("epoch ")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 3/3"]


@pytest.mark.parametrize(
    ("at", "end", "limit", "expected"),
    [
        (0.5, 10, None, 95),
        (10, 10, None, 0),
        (9.75, 9.9, None, 1.5),  # max_steps ends training within the tenth epoch
        (2.5, 10, 12, 15),  # the time is up in the fourth epoch, which is completed
        (2.5, 10, 1, 5),
        (2.5, 10, -3, 5),  # the time is already up
        (2.5, 3, 1000, 5),
    ],
)
def test_the_remaining_time_ends_with_epochs_steps_or_max_time(at, end, limit, expected):
    assert seconds_left(at, end, 10, limit) == pytest.approx(expected)


@pytest.mark.parametrize("arch", ["sam_resnet", "champion_cpu"])
def test_a_long_run_on_a_cpu_names_its_duration_and_faster_presets_once(
    arch, experiment, monkeypatch
):
    monkeypatch.setattr(display, "REFRESH", 0)
    monkeypatch.setattr(display, "ESTIMATE_AFTER", (0, 2))
    monkeypatch.setattr(display, "seconds_left", lambda *_: 3 * 3600)
    network = ("--arch=champion_cpu", "--model.widths=[1,1,1]", "--model.base_width=2")
    output = experiment(*(network if arch == "champion_cpu" else ()), *SHOWN).output
    assert output.count("remaining time of the whole run: 3 h\n") == 1
    (hint,) = [line for line in output.splitlines() if "--quick" in line]
    assert ("--arch champion_cpu" in hint) == (arch == "sam_resnet")


def test_a_short_run_estimates_nothing(experiment, monkeypatch):
    monkeypatch.setattr(display, "REFRESH", 0)
    monkeypatch.setattr(display, "ESTIMATE_AFTER", (0, 2))
    assert "whole run" not in experiment(*SHOWN).output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (600, "10 min"),
        (8100, "2 h 15 min"),
        (7200, "2 h"),
        (100 * 3600, "4 days 4 h"),
        (96 * 3600, "4 days"),
    ],
)
def test_durations_are_read_easily(seconds, text):
    assert duration(seconds) == text


def test_long_work_prints_lines_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    assert list(track("abc", "letters", 3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(",")[0] for line in err.splitlines()] == [
        "letters: 1 of 3",
        "letters: 2 of 3",
    ]


def test_short_work_prints_nothing(capsys):
    assert list(track("abc", "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_a_character_that_the_encoding_lacks_is_replaced(encoding):
    program = (
        "from experiments.console import command, UserError\n"
        "@command\n"
        "def main():\n"
        r"    print('\u2501 caf\u00e9')" + "\n"
        r"    raise UserError('\u2501')" + "\n"
        "main()"
    )
    environment = os.environ | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 2
    assert done.stdout == "? caf\u00e9\n".encode(encoding, "replace")
    assert done.stderr == b"error: ?\n"
