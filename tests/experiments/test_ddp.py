"""Several processes train a run as one process does, if the flags allow equal results."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import update_bn

from experiments.records.record import read_record
from experiments.training.devices import images_per_step, step_in_words
from experiments.training.launch import read_launch
from experiments.training.loggers import csv_logger, wandb_logger
from experiments.training.processes import FOLDER, is_first, is_first_of_machine
from experiments.training.trainer import Trainer
from lightning_modules.networks.sam_resnet import SAMResNet

ROOT = Path(__file__).parents[2]
# 209 of 1,999 images are for validation: two processes get 105 and 104, in 3 and 2 batches.
UNEVEN = ("--data.val_fraction=0.1026", "--data.eval_batch_size=52")
# With these flags several processes equal one, except for the order of sums. Augmentation is off,
# because each process draws its own. `group_norm` replaces BatchNorm, because each process has its
# own statistics.
EXACT = (
    *UNEVEN,
    "--trainer.precision=64-true",
    "--data.crop_padding=0",
    "--data.flip=0",
    "--data.cutout=0",
    "--data.mixup_alpha=0",
    "--lookahead.k=2",
)

# The command on few synthetic images, as a file, because Lightning starts it again.
PROGRAM = """
import datamodules.cifar10
from datamodules.synthetic import synthetic_cifar10

datamodules.cifar10.synthetic_cifar10 = lambda split, **_: synthetic_cifar10(
    split, per_class=200 if split == "train" else 30
)
from experiments.run import main

main()
"""


def of_lightning(rank, processes, port):
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }


def of_nodes(rank, processes, port):
    """The environment if a user starts the command on each of several nodes with one device."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(rank)}


def of_torchrun(rank, processes, port):
    return of_lightning(rank, processes, port) | {
        "TORCHELASTIC_RUN_ID": "none",
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
    }


def of_slurm(rank, processes, port):
    return {
        "MASTER_PORT": port,  # by default derived from the job's number
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": str(processes),
        "SLURM_NTASKS_PER_NODE": str(processes),
        "SLURM_STEP_NUM_TASKS": str(processes),
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


@dataclass(frozen=True)
class Together:
    """The exit codes and files of processes that ran one experiment."""

    codes: list[int]
    folder: Path  # the folder of the run
    notes: Path  # the folder with the processes' output

    @property
    def record(self):
        return read_record(self.folder / "result.json")

    @property
    def arrays(self):
        with np.load(self.folder / "predictions.npz") as file:
            return {name: torch.from_numpy(array) for name, array in file.items()}

    def printed(self, rank, stream="out"):
        return (self.notes / f"{rank}.{stream}").read_text()

    def seen(self, rank, moment="end", epoch=2):
        return torch.load(self.notes / f"{moment}-{epoch}-{rank}.pt", weights_only=True)

    def checkpoint(self, name="last.ckpt"):
        return torch.load(self.folder / name, weights_only=True)

    def column(self, name):
        with (self.folder / "metrics.csv").open(newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory):
    """Run a tiny experiment in several processes; `codes` are the expected exit codes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("ranks.py")],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def together(*flags, processes=2, started_by=of_lightning, codes=None, **options):
            notes = tmp_path_factory.mktemp("processes")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            argv = [*tiny(), *flags]
            if started_by is not of_nodes:
                argv.append(f"--trainer.devices={processes}")
            environments = [started_by(rank, processes, port) for rank in range(processes)]
            job = {
                "argv": argv,
                "environments": environments if processes > 1 else [{}],
                "folder": str(notes),
                "seconds": 600,
            }
            server.stdin.write(json.dumps(job | options) + "\n")
            server.stdin.flush()
            given = dict(flag.split("=", 1) for flag in argv)
            folder = Path(given["--output"], given["--name"])
            run = Together(json.loads(server.stdout.readline()), folder, notes)
            errors = "\n".join(run.printed(rank, "err") for rank in range(processes))
            assert run.codes == (codes or [0] * processes), errors
            return run

        yield together
        server.kill()


@pytest.fixture(scope="module")
def alone(together):
    return together(*EXACT, processes=1, group_norm=True)


@pytest.fixture(scope="module")
def pair(together):
    """The same run in two processes."""
    return together(*EXACT, group_norm=True)


@pytest.fixture(scope="module")
def averaged(together):
    """Two processes, started by SLURM, with the full recipe of sam_resnet."""
    return together(*UNEVEN, started_by=of_slurm)


def close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda x, n=name: f"{n}: {x}", **tolerance)


def identical(a, b):
    close(a, b, rtol=0, atol=0)


# Equal except for the order of float64 sums.
EQUAL = {"rtol": 1e-9, "atol": 1e-12}


def test_two_processes_train_on_the_shards_of_the_batches_of_one(alone, pair):
    whole = alone.seen(0)["batches"]
    shards = [pair.seen(rank)["batches"] for rank in range(2)]
    assert [len(batches) for batches in (whole, *shards)] == [6, 6, 6]
    for batch, ours, theirs in zip(whole, *shards, strict=True):
        assert len(ours) == len(theirs) == 16
        assert torch.equal(torch.cat([ours, theirs]), batch)
    # All images of the whole batch differ, so the shards share no image.
    assert all(len(batch.flatten(1).unique(dim=0)) == 32 for batch in whole)


def test_two_processes_end_with_the_weights_of_one(alone, pair):
    ours, theirs = pair.checkpoint(), alone.checkpoint()
    close(ours["state_dict"], theirs["state_dict"], **EQUAL)
    close(ours["callbacks"]["EMA"]["average"], theirs["callbacks"]["EMA"]["average"], **EQUAL)
    close(ours["callbacks"]["Lookahead"]["slow"], theirs["callbacks"]["Lookahead"]["slow"], **EQUAL)
    assert ours["callbacks"]["EMA"]["updates"] == theirs["callbacks"]["EMA"]["updates"] == 6
    momenta = [x["optimizer_states"][0]["state"] for x in (ours, theirs)]
    for name, state in momenta[0].items():
        close(state, momenta[1][name], **EQUAL)


@pytest.mark.trust  # it starts two more pairs of processes
def test_two_processes_learn_from_a_teacher_like_one(alone, together):
    flags = (*EXACT, f"--teacher={alone.folder}")
    one, two = (together(*flags, processes=n, group_norm=True).checkpoint() for n in (1, 2))
    close(two["state_dict"], one["state_dict"], **EQUAL)
    taught = [x.ne(alone.checkpoint()["state_dict"][k]).any() for k, x in one["state_dict"].items()]
    assert any(taught)


@pytest.mark.parametrize(
    "name", ["train/loss", "train/acc", "val/loss", "val/acc", "val/loss_ema", "val/acc_ema"]
)
def test_two_processes_log_the_curves_of_one(alone, pair, name):
    assert len(pair.column(name)) == 2
    assert pair.column(name) == pytest.approx(alone.column(name), rel=1e-6)


def test_two_processes_count_every_image_of_uneven_shards_once(pair):
    for kind, name in (("raw", "val/acc"), ("ema", "val/acc_ema")):
        score = pair.record.scores["val"][kind]
        assert score.images == 209
        # After training, the first process evaluates alone.
        assert pair.column(name)[score.epoch - 1] == pytest.approx(score.accuracy, abs=1e-7)


def test_two_processes_predict_the_same_as_one_in_its_order(alone, pair):
    ours, theirs = pair.arrays, alone.arrays
    assert [len(ours[f"{split}_labels"]) for split in ("val", "test")] == [209, 300]
    close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_two_processes_leave_the_record_of_one(alone, pair):
    ours, theirs = pair.record, alone.record
    for name in ("epochs", "steps", "train_images", "images_per_step", "selected", "parameters"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.steps, ours.train_images, ours.images_per_step) == (6, 96, 32)
    assert ours.device == f"2 x {theirs.device}"
    assert len(ours.command) == 1


def test_the_images_of_a_step_are_printed_once_at_the_start(alone, pair):
    line = "An optimizer step sees 32 images{}; peak learning rate 0.1\n"
    assert alone.printed(0).startswith(line.format(""))
    assert pair.printed(0).startswith(line.format(" (2 devices x 16)"))
    assert pair.printed(1) == ""
    announced = ["SYNTHETIC" in pair.printed(rank, "err") for rank in range(2)]
    assert announced == [True, False]  # only the first process looks for the data


@pytest.mark.parametrize(
    ("batches", "made_of"), [(1, ""), (4, " (4 batches x 32)")], ids=["plain", "accumulated"]
)
def test_accumulated_batches_count_for_the_effective_batch_size(batches, made_of):
    trainer = Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=batches)
    images = images_per_step(trainer, 32)
    assert images == 32 * batches
    expected = f"An optimizer step sees {images} images{made_of}; peak learning rate 0.05"
    assert step_in_words(trainer, 32, 0.05) == expected


def test_only_the_first_process_touches_the_curves(tmp_path, monkeypatch):
    curves = tmp_path / "metrics.csv"
    curves.write_text("step,val/acc\n0,0.5\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    csv_logger(tmp_path, keep_steps=0)
    assert wandb_logger(tmp_path, "online", {}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert curves.read_text() == "step,val/acc\n0,0.5\n"


def test_the_folder_has_the_same_files_as_with_one_process(alone, pair):
    ours, theirs = ({path.name for path in run.folder.iterdir()} for run in (pair, alone))
    assert ours == theirs


def test_within_an_epoch_only_the_statistics_of_both_processes_differ(averaged):
    """Otherwise the next test would compare values that never differ."""
    first, second = (averaged.seen(rank, "step", 1) for rank in range(2))
    for name in ("raw", "average"):
        identical(*({key: x[name][key] for key in x["slow"]} for x in (first, second)))
        with pytest.raises(AssertionError, match="running_mean"):
            identical(first[name], second[name])


@pytest.mark.parametrize("moment", [("validation", 0), ("validation", 1), ("end", 2)])
def test_both_processes_have_the_same_averages_and_statistics(averaged, moment):
    first, second = (averaged.seen(rank, *moment) for rank in range(2))
    for name in ("raw", "slow", "average"):
        identical(first[name], second[name])


def test_the_validated_average_is_saved(averaged):
    identical(averaged.seen(0)["average"], averaged.checkpoint()["callbacks"]["EMA"]["average"])
    score = averaged.record.scores["val"]["ema"]
    accuracies = averaged.column("val/acc_ema")
    assert accuracies[score.epoch - 1] == pytest.approx(score.accuracy, abs=1e-7)


def test_each_process_draws_different_random_numbers(averaged):
    first, second = (averaged.seen(rank) for rank in range(2))
    assert not torch.equal(first["random"], second["random"])
    states = averaged.checkpoint()["callbacks"]["RandomState"]["processes"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    assert states[0]["python"] != states[1]["python"]


def test_two_interrupted_processes_end_like_two_undisturbed_ones(averaged, together):
    name = f"--name={averaged.folder.name}-interrupted"
    cut_off = together(*UNEVEN, name, interrupt=1, codes=[1, 1])
    assert not (cut_off.folder / "result.json").exists()
    assert cut_off.checkpoint()["global_step"] == 4  # in the middle of the second epoch
    resumed = together(name, "--ckpt_path=last")
    for rank in range(2):
        ours, theirs = resumed.seen(rank), averaged.seen(rank)
        for part in ("raw", "average", "slow"):
            identical(ours[part], theirs[part])
        assert torch.equal(ours["random"], theirs["random"])
    assert resumed.record.scores == averaged.record.scores
    for name in ("train/loss", "train/acc_soft"):
        # The sums are split at the checkpoint, so their order differs.
        assert resumed.column(name) == pytest.approx(averaged.column(name), rel=1e-6)


@pytest.mark.trust
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_continues_with_another_number_of_processes(before, after, alone, together):
    name = f"--name={alone.folder.name}-{before}-{after}"
    first = {"processes": before, "codes": [1] * before, "interrupt": 1}
    together(*EXACT, name, group_norm=True, **first)
    run = together(*EXACT, name, "--ckpt_path=last", group_norm=True, processes=after)
    close(run.checkpoint()["state_dict"], alone.checkpoint()["state_dict"])
    assert run.column("train/loss") == pytest.approx(alone.column("train/loss"), rel=1e-6)
    assert (run.record.epochs, run.record.steps) == (2, 6)


def test_the_statistics_of_swa_are_over_the_batches_of_all_processes(together):
    run = together("--ema=false", "--swa.start=0.5", "--swa.lr=0.02")
    first, second = (run.seen(rank) for rank in range(2))
    identical(first["average"], second["average"])
    identical(first["average"], run.checkpoint()["callbacks"]["SWA"]["average"])
    network = SAMResNet(4, (1, 1, 1))
    network.load_state_dict(first["average"])
    # From the last epoch's three batches.
    update_bn([*first["batches"][3:], *second["batches"][3:]], network)
    expected = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    close({k: first["average"][k] for k in expected}, expected)


# Ways to start the processes


@pytest.fixture
def program(tmp_path, tiny):
    """Run the command on two devices in a new process, on few images and without --name."""
    path = tmp_path / "run.py"
    path.write_text(PROGRAM)

    def program(*flags):
        argv = [x for x in tiny("--trainer.devices=2", *flags) if not x.startswith("--name=")]
        command = [sys.executable, str(path), *argv, f"--output={tmp_path / 'runs'}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    return program


@pytest.mark.trust
def test_the_command_starts_its_second_process_and_both_use_one_folder(program, tmp_path):
    done = program()
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sam_resnet-")
    assert len(read_record(folder / "result.json").command) == 1
    assert {"augmented.png", "confusion.png", "curves.png"} <= {x.name for x in folder.iterdir()}
    assert done.stdout.count("An optimizer step sees 32 images (2 devices x 16)") == 1
    assert done.stdout.count(str(folder.parent)) == 1


@pytest.mark.trust
def test_a_mistake_in_both_processes_ends_the_command_with_one_line(program):
    done = program("--budget.limit=100")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


def test_processes_can_be_started_by_slurm(averaged):
    assert averaged.record.device.startswith("2 x ")
    assert len(averaged.record.command) == 1


@pytest.mark.trust
@pytest.mark.parametrize("started_by", [of_torchrun, of_nodes])
def test_processes_can_be_started_by_others(started_by, together):
    nodes = ["--trainer.num_nodes=2"] if started_by is of_nodes else []
    run = together("--trainer.max_epochs=1", *nodes, started_by=started_by)
    assert run.record.steps == 3
    assert run.record.device.startswith("2 x ")
    assert len(run.record.command) == 1


@pytest.mark.parametrize(
    ("environment", "first", "speaks"),
    [
        ({}, True, True),
        (of_lightning(0, 2, "0"), True, True),
        (of_lightning(1, 2, "0"), False, False),
        (of_nodes(1, 2, "0"), False, True),
        (of_torchrun(0, 2, "0") | {"SLURM_PROCID": "1"}, True, True),
        (of_torchrun(2, 4, "0") | {"LOCAL_RANK": "0", "GROUP_RANK": "1"}, False, True),
        (of_slurm(0, 2, "0"), True, True),
        (of_slurm(1, 2, "0"), False, False),
        (of_slurm(2, 4, "0") | {"SLURM_LOCALID": "0", "SLURM_NODEID": "1"}, False, True),
    ],
)
def test_the_environment_decides_which_process_writes_and_prints(
    environment, first, speaks, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (is_first(), is_first_of_machine()) == (first, speaks)


def test_a_process_started_by_lightning_uses_its_parents_folder(monkeypatch):
    monkeypatch.setenv(FOLDER, "runs/sam_resnet-20260101-000000")
    assert read_launch(["--arch=sam_resnet"]).folder.name != "sam_resnet-20260101-000000"
    for name, value in of_lightning(1, 2, "0").items():
        monkeypatch.setenv(name, value)
    launch = read_launch(["--arch=sam_resnet"])
    assert launch.folder == Path("runs/sam_resnet-20260101-000000")


@pytest.mark.parametrize("started_by", [of_nodes, of_torchrun, of_slurm])
def test_processes_started_by_others_need_a_name(started_by, monkeypatch, refusal):
    for name, value in started_by(0, 2, "0").items():
        monkeypatch.setenv(name, value)
    line = refusal("--arch=sam_resnet", act=lambda *flags: read_launch(list(flags)))
    assert line.startswith("--name is missing")
    assert read_launch(["--arch=sam_resnet", "--name=a"]).folder == Path("runs/a")


# Mistakes


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--data.batch_size=33"], "--data.batch_size must be a multiple of .*, 2, got 33"),
        (["--trainer.sync_batchnorm=true"], "--trainer.sync_batchnorm needs GPUs, got CPUs"),
        (["--trainer.strategy=ddp_spawn"], "--trainer.strategy must be ddp on several devices"),
    ],
)
def test_flags_for_one_device_are_rejected_before_several_are_used(flags, answer, refusal):
    line = refusal("--trainer.devices=2", *flags)
    assert re.fullmatch(answer, line), line


@pytest.mark.parametrize(("devices", "answer"), [(1, "2 processes were started, but"), (3, "3")])
def test_another_number_of_processes_than_flags_name_is_rejected(
    devices, answer, monkeypatch, refusal
):
    for name, value in of_torchrun(0, 2, "0").items():
        monkeypatch.setenv(name, value)
    line = refusal(f"--trainer.devices={devices}", "--data.batch_size=30")
    assert answer in line
    assert "devices" in line


def test_a_mistake_in_all_processes_is_printed_once(together):
    run = together("--budget.limit=100", codes=[2, 2])
    errors = [run.printed(rank, "err") for rank in range(2)]
    assert [text.count("error: ") for text in errors] == [1, 0]
    assert "exceed the budget of 100" in errors[0]
    assert not any("Traceback" in text for text in errors)
