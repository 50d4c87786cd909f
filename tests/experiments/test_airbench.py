import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

import datamodules.cifar10
from experiments.benchmarks import airbench, time_to_accuracy

# A small program that calls CUDA and defines names as the public program does.
PROGRAM = """
import torch
from torch import nn

hyp = {"opt": {"batch_size": 4, "whiten_bias_epochs": 1}}

def make_net():
    net = nn.Sequential(nn.Conv2d(3, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 31 * 31, 10))
    net[0].weight.requires_grad = False
    return net.half().cuda()

def print_training_details(variables, is_final_entry):
    print(variables["current_steps"])

def main(run):
    torch.save({"images": torch.zeros(4, 3, 32, 32)}, "PLACE")
    data = torch.load("PLACE", map_location=torch.device("cuda", 0))
    images, train_loader = data["images"].half(), range(2)
    net = make_net()
    starter, ender = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    starter.record()
    answers = net(images)
    ender.record()
    torch.cuda.synchronize()
    assert answers.dtype == torch.float32 and net[0](images).dtype == torch.float32
    current_steps, total_time_seconds = 5, 1e-3 * starter.elapsed_time(ender)
    print_training_details(locals(), is_final_entry=True)
    return 0.25
"""


def test_a_program_for_cuda_is_run_on_a_cpu_and_its_operations_counted(
    tmp_path, monkeypatch, capsys
):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.replace("PLACE", str(tmp_path / "train.pt")))
    stand_in = airbench.stand_in_for_cuda
    monkeypatch.setattr(airbench, "stand_in_for_cuda", lambda: stand_in(monkeypatch.setattr))
    monkeypatch.setattr(sys, "argv", ["airbench.py", str(file)])
    airbench.main()
    shown, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert shown == "5"
    assert found["accuracy"] == 0.25
    assert found["seconds"] > 0
    convolution, linear = 2 * 12 * 8 * 31**2, 2 * 8 * 31**2 * 10
    # Forward passes, and the gradients of the linear layer's weights. Two of the five steps also
    # train the first bias: they need the gradient of the linear layer's input.
    with_bias, without = convolution + 3 * linear, convolution + 2 * linear
    assert found["operations"] == 4 * (2 * with_bias + 3 * without)


def test_a_missing_file_gives_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["airbench.py", str(tmp_path / "none.py")])
    with pytest.raises(SystemExit) as end:
        airbench.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert (end.value.code, line.partition(": clone")[0]) == (
        2,
        f"error: {tmp_path / 'none.py'} is not a file",
    )


READS_ITS_DATA = """
import os
import torch

runs = []
hyp = {"opt": {"batch_size": 4, "whiten_bias_epochs": 1}}

def make_net():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 2))

def print_training_details(variables, is_final_entry):
    pass

def main(run):
    assert os.path.exists("cifar10/train.pt")
    data = torch.load("cifar10/test.pt", map_location=torch.device("cpu"))
    assert data["images"].shape == (300, 32, 32, 3) and data["images"].dtype == torch.uint8
    assert len(data["labels"]) == 300 and len(data["classes"]) == 10
    runs.append(float(data["images"].float().mean()))
    current_steps, train_loader, total_time_seconds = 1, range(2), 10.0 ** len(runs)
    print_training_details(locals(), is_final_entry=True)
    return 0.5
"""


def test_warm_sides_alternate_in_this_process_and_their_first_runs_do_not_count(
    tmp_path, monkeypatch, few_images
):
    file = tmp_path / "program.py"
    file.write_text(READS_ITS_DATA)
    here = Path.cwd()
    monkeypatch.setattr(airbench, "stand_in_for_cuda", lambda: None)
    monkeypatch.setattr(datamodules.cifar10, "synthetic_cifar10", few_images)
    flags = argparse.Namespace(
        arch="speed_resnet",
        airbench=file,
        target=0.94,
        seeds=2,
        first_seed=3,
        strategy="adaptive",
        device="cpu",
        run_flags=[
            *("--data.source=synthetic", "--data.batch_size=32", "--data.val_fraction=0"),
            *("--model.base_width=4", "--trainer.limit_train_batches=2", "--wandb=disabled"),
            *("--trainer.max_steps=3", "--trainer.enable_progress_bar=false"),
        ],
    )
    rows = list(time_to_accuracy.run_warm(flags))
    assert [(row["side"], row["run"]) for row in rows] == [
        *(("ours", 3), ("beside", 0)),
        *(("ours", 4), ("beside", 1)),
    ]
    # The printed seconds of the program's second and third run.
    assert [row["seconds"] for row in rows[1::2]] == [100, 1000]
    for row in rows[::2]:
        assert row["steps"] == 3
        assert row["seconds"] == row["training_seconds"] + row["answering_seconds"]
        assert min(row["training_seconds"], row["answering_seconds"]) > 0
        assert 0 <= row["accuracy"] <= 1
        assert row["source"] == "synthetic"
    assert Path.cwd() == here
    assert time_to_accuracy.table(rows).row_count == 6
    late = list(time_to_accuracy.run_warm(flags, deadline=0))
    assert len(late) == 2


def test_images_are_written_as_the_program_reads_them(tmp_path):
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    airbench.write_images(tmp_path / "cifar10", True, images, torch.tensor([1, 0]), ("a", "b"))
    found = torch.load(tmp_path / "cifar10" / "train.pt", weights_only=True)
    assert torch.equal(found["images"].permute(0, 3, 1, 2), images)
    assert found["labels"].tolist() == [1, 0]
    assert found["classes"] == ["a", "b"]


def test_on_a_gpu_the_program_is_left_as_it_is(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(READS_ITS_DATA)
    device = torch.device("cuda")
    assert airbench.load_program(file, device).make_net.__module__ == "airbench"
