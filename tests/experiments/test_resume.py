import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback

from experiments.console import UserError
from experiments.records.record import read_record
from experiments.training.combinations import changes

ROOT = Path(__file__).parents[2]
SWA = ("--ema=false", "--swa.start=0.4", "--swa.lr=0.05")
# Flags, and the epoch (of three) that is interrupted.
RECIPES = {
    "an end by steps within an epoch": (("--trainer.max_steps=8",), 1),
    "one cycle, clipping, MixUp, Lookahead and EMA": ((), 1),
    "dropout, MixUp or CutMix and EMA": (
        ("--arch=enhanced_efficient_resnet", "--model.base_width=4"),
        2,
    ),
    "before SWA": (SWA, 1),
    "within SWA": ((*SWA, "--swa.schedule=cyclic"), 2),
}
# The command on few synthetic images, for a new process.
PROGRAM = """
import datamodules.cifar10
from datamodules.synthetic import synthetic_cifar10

datamodules.cifar10.synthetic_cifar10 = lambda split, **_: synthetic_cifar10(
    split, per_class=200 if split == "train" else 30
)
from experiments.run import main

main()
"""


class Interrupt(Callback):
    """Raises an exception in the second step of an epoch; this ends the run, but not the test."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            raise InterruptedError


class Terminate(Callback):
    """Sends a signal to this process, as a scheduler or Ctrl-C does, in step 2 of 3 of an epoch.

    With `validation` it sends the signal in the first validation batch of the epoch.
    """

    def __init__(self, epoch, number=signal.SIGTERM, validation=False):
        self.epoch = epoch
        self.number = number
        self.validation = validation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1) and not self.validation:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 0) and self.validation:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def undisturbed(experiment):
    """Train three epochs of a recipe; all tests share one training per recipe."""
    runs = {}

    def undisturbed(flags=()):
        if flags not in runs:
            runs[flags] = experiment(*flags, "--trainer.max_epochs=3")
        return runs[flags]

    return undisturbed


@pytest.fixture
def resume(command):
    """Resume the run in a folder; pass only its architecture and its name."""

    def resume(folder, *flags, **options):
        arch = yaml.safe_load((folder / "config.yaml").read_text())["arch"]
        argv = [f"--arch={arch}", f"--output={folder.parent}", f"--name={folder.name}"]
        return command([*argv, "--ckpt_path=last", *flags], **options)

    return resume


def portable(value, folder):
    """Remove the folder's name from nested containers, and replace tensors by bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {portable(k, folder): portable(v, folder) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [portable(x, folder) for x in value]
    return value.replace(str(folder), "") if isinstance(value, str) else value


def state(folder, name):
    """The contents of a checkpoint without times."""
    checkpoint = torch.load(folder / name, weights_only=True)
    if name == "last.ckpt":
        del checkpoint["callbacks"]["Timer"]
    return portable(checkpoint, folder)


def curves(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return [{key: float(value) for key, value in row.items() if value} for row in rows]


def assert_same(folder, expected, end=9):
    """Assert that both runs have equal checkpoints, curves and predictions."""
    checkpoints = {path.name for path in expected.glob("*.ckpt")}
    assert {path.name for path in folder.glob("*.ckpt")} == checkpoints
    for name in checkpoints:
        ours, theirs = state(folder, name), state(expected, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key] == theirs[key], f"{key} of {name}"
    assert curves(folder) == curves(expected)
    with (
        np.load(folder / "predictions.npz") as ours,
        np.load(expected / "predictions.npz") as theirs,
    ):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert np.array_equal(ours[key], theirs[key]), key
    ours, theirs = read_record(folder / "result.json"), read_record(expected / "result.json")
    assert ours.scores == theirs.scores
    steps = 8 if theirs.config["trainer"]["max_steps"] == 8 else end
    assert (ours.epochs, ours.steps) == (theirs.epochs, theirs.steps) == (3, steps)


def steps_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_stopped_twice_ends_like_an_undisturbed_run(
    recipe, undisturbed, tiny, command, resume
):
    flags, epoch = RECIPES[recipe]
    expected = undisturbed(flags).folder
    name = recipe.replace(" ", "-")
    argv = tiny(*flags, "--trainer.max_epochs=3", f"--name={name}")
    with pytest.raises(InterruptedError):
        command(argv, callbacks=[Interrupt(epoch)])
    folder = expected.parent / name
    assert steps_of(folder / "last.ckpt") == 3 * epoch
    with pytest.raises(SystemExit):
        resume(folder, callbacks=[Terminate(epoch)])
    assert steps_of(folder / "last.ckpt") == 3 * epoch + 2  # after the step with the signal
    assert not (folder / "result.json").exists()

    run = resume(folder)
    assert_same(folder, expected)
    assert len(run.record.command) == 3
    assert all("--ckpt_path=last" in line for line in run.record.command[1:])


def test_no_validation_within_an_epoch_is_lost(undisturbed, tiny, command, resume):
    flags = ("--trainer.val_check_interval=2",)
    expected = undisturbed(flags).folder
    argv = tiny(*flags, "--trainer.max_epochs=3", "--name=validated")
    with pytest.raises(SystemExit):
        command(argv, callbacks=[Terminate(1)])
    folder = expected.parent / "validated"
    assert steps_of(folder / "last.ckpt") == 6  # the epoch's end, as a validation follows step 5
    resume(folder)
    assert_same(folder, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("flags", "validation", "steps"),
    [
        ((), False, 5),
        ((), True, 6),
        (("--trainer.accumulate_grad_batches=2",), False, 3),
    ],
)
def test_a_signal_loses_no_step_and_continues_bit_for_bit(
    number, flags, validation, steps, undisturbed, tiny, command, resume
):
    expected = undisturbed(flags).folder
    name = f"signal{number}{validation}{len(flags)}"
    argv = tiny(*flags, "--trainer.max_epochs=3", f"--name={name}")
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        command(argv, callbacks=[Terminate(1, number, validation)])
    assert end.value.code == (1 if number == signal.SIGINT else None)
    folder = expected.parent / name
    assert steps_of(folder / "last.ckpt") == steps
    signal.signal(number, before)  # Lightning ignores SIGINT while it shuts down
    resume(folder)
    steps_per_epoch = 2 if flags else 3
    assert_same(folder, expected, 3 * steps_per_epoch)


def test_ctrl_c_prints_the_command_that_continues(undisturbed, tiny, resume, command):
    expected = undisturbed().folder
    flags = ("--trainer.max_epochs=3", "--name=stopped", "--trainer.enable_progress_bar=true")
    argv = tiny(*flags)
    folder = expected.parent / "stopped"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *argv], cwd=ROOT, **pipes) as process:
        while not (folder / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in err
    *_, line = out.splitlines()
    python, script, *argv = shlex.split(line.partition("Continue with: ")[2])
    assert (python, script) == ("python", "experiments/run.py")
    command(argv)
    assert_same(folder, expected)
    # No messages of Lightning about the machine, other products or its internals.
    for message in ("GPU available", "train_dataloader", "Tip", "LOCAL_RANK", "stopped:"):
        assert message not in out + err


def test_the_compared_checkpoints_contain_all_state(undisturbed):
    """The comparison of checkpoints is only useful if they contain all of this state."""
    folder = undisturbed().folder
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 9
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 9
    (optimizer,) = checkpoint["optimizer_states"]
    assert all(state["momentum_buffer"].any() for state in optimizer["state"].values())
    callbacks = checkpoint["callbacks"]
    assert callbacks["EMA"]["updates"] == callbacks["Lookahead"]["steps"] == 9
    network = checkpoint["state_dict"]["network.head.weight"]
    for average in (callbacks["EMA"]["average"], callbacks["Lookahead"]["slow"]):
        assert not torch.equal(average["head.weight"], network)
    assert callbacks["RandomState"].keys() == {"python", "numpy", "torch", "cuda"}


def test_a_killed_process_is_continued_bit_for_bit(undisturbed, tiny, resume):
    expected = undisturbed().folder
    argv = tiny("--trainer.max_epochs=3", "--name=killed")
    folder = expected.parent / "killed"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *argv], cwd=ROOT) as process:
        # The first epoch's checkpoint is written while its loss is logged.
        while not (folder / "last.ckpt").exists() or not any(
            "train/loss" in row for row in curves(folder)
        ):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    resume(folder)
    assert_same(folder, expected)


class Keep(Callback):
    """Keeps a copy of last.ckpt after the first epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 0):
            trainer.strategy.checkpoint_io.teardown()  # waits until the file is written
            folder = Path(trainer.default_root_dir)
            shutil.copy(folder / "last.ckpt", folder / "first.ckpt")


@pytest.mark.parametrize("flags", [(), SWA])
def test_a_run_with_best_weights_newer_than_last_ckpt_repeats_them(
    flags, undisturbed, tiny, command, resume
):
    """A kill less than 30 seconds after the end of an epoch leaves such files."""
    expected = undisturbed(flags).folder
    name = f"newer{len(flags)}"
    folder = command(
        tiny(*flags, "--trainer.max_epochs=3", f"--name={name}"), callbacks=[Keep()]
    ).folder
    (folder / "result.json").unlink()
    (folder / "first.ckpt").replace(folder / "last.ckpt")
    assert steps_of(folder / "best.ckpt") == 9 > steps_of(folder / "last.ckpt") == 3
    resume(folder)
    assert_same(folder, expected)


@pytest.mark.parametrize("flags", [(), ("--trainer.max_steps=8",)])
def test_a_run_that_was_interrupted_in_evaluation_continues_with_it(
    flags, undisturbed, tiny, command, resume, few_images
):
    expected = undisturbed(flags).folder

    def images(split, **_):
        if split == "test":
            raise InterruptedError
        return few_images(split)

    argv = tiny(*flags, "--trainer.max_epochs=3", f"--name=unevaluated{len(flags)}")
    with pytest.raises(InterruptedError):
        command(argv, images=images)
    folder = expected.parent / f"unevaluated{len(flags)}"
    resume(folder)
    assert_same(folder, expected)


@pytest.mark.parametrize("flags", [(), ("--trainer.max_epochs=-1", "--trainer.max_steps=9")])
def test_a_run_out_of_time_continues_with_more_time(flags, undisturbed, tiny, command, resume):
    expected = undisturbed().folder

    class Slow(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            time.sleep(1)

    name = f"late{len(flags)}"
    argv = tiny(
        "--trainer.max_epochs=3", *flags, f"--name={name}", "--trainer.max_time=00:00:00:01"
    )
    run = command(argv, callbacks=[Slow()])
    assert run.record is None
    where = f"--arch sam_resnet --name {name} --output {expected.parent} --ckpt_path last"
    assert f"Continue with: python experiments/run.py {where}" in run.output
    names = {path.name for path in run.folder.iterdir()}
    assert not names & {"result.json", "predictions.npz", "confusion.png"}
    assert torch.load(run.folder / "last.ckpt", weights_only=True)["global_step"] == 3
    resume(run.folder, "--trainer.max_time=00:01:00:00")
    assert_same(run.folder, expected)


def test_another_runs_checkpoint_is_continued_in_a_new_folder(undisturbed, experiment):
    other = undisturbed()
    run = experiment("--trainer.max_epochs=4", f"--ckpt_path={other.folder / 'last.ckpt'}")
    assert run.folder != other.folder
    assert (run.record.epochs, run.record.steps) == (4, 12)
    assert [row["step"] for row in curves(run.folder) if "lr-SGD" in row] == [9, 10, 11]


def test_changed_settings_of_a_resumed_run_are_listed_or_accepted(
    undisturbed, tiny, command, resume
):
    with pytest.raises(InterruptedError):
        command(tiny("--name=changed"), callbacks=[Interrupt(1)])
    folder = undisturbed().folder.with_name("changed")
    changes = ("--model.label_smoothing=0.2", "--data.cutout=8", "--seed=1")
    with pytest.raises(UserError) as error:
        resume(folder, *changes)
    listed = "--data.cutout: 16 -> 8; --model.label_smoothing: 0.0 -> 0.2; --seed: 0 -> 1: "
    assert str(error.value).startswith(listed)
    assert str(error.value).endswith("add --allow-changes")
    resumed = resume(folder, *changes, "--allow-changes", "--trainer.max_time=00:01:00:00")
    assert resumed.output.startswith(f"Changed settings: {listed.removesuffix(': ')}")
    assert resumed.record.config["data"]["cutout"] == 8
    assert not resumed.record.config["allow_changes"]


@pytest.mark.parametrize(
    ("before", "now", "listed"),
    [
        ({"decay": 0.9}, False, "--ema: {'decay': 0.9} -> False"),
        (False, {"decay": 0.9}, "--ema: False -> {'decay': 0.9}"),
        ({"decay": 0.9}, {"decay": 0.8}, "--ema.decay: 0.9 -> 0.8"),
    ],
)
def test_a_callback_that_is_switched_on_or_off_is_a_changed_setting(before, now, listed):
    budget = {"budget": {"limit": 7}}  # does not change a training
    assert changes(budget | {"ema": before}, {"budget": False, "ema": now}) == [listed]


def test_a_run_with_a_damaged_checkpoint_continues_from_the_one_before(
    undisturbed, tiny, command, resume, capsys
):
    expected = undisturbed().folder
    with pytest.raises(InterruptedError):
        command(tiny("--trainer.max_epochs=3", "--name=damaged"), callbacks=[Interrupt(2)])
    folder = expected.with_name("damaged")
    last = folder / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    (folder / "metrics.csv.partial").touch()  # as if the process was killed while it wrote
    resume(folder)
    assert not list(folder.glob("*.partial"))
    assert f"Continuing from {folder / 'previous.ckpt'}" in capsys.readouterr().err
    assert_same(folder, expected)
    assert not (folder / "previous.ckpt").exists()
