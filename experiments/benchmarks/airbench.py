"""The public speed-run, a file of KellerJordan/cifar10-airbench as it is, on a GPU or a CPU.

python experiments/benchmarks/airbench.py cifar10-airbench/legacy/airbench94.py

It is run once, in the folder where this is started, and downloads CIFAR-10 to `cifar10` there. The
last line of output is for `benchmark.py time-to-accuracy --beside`: accuracy with the file's own
test-time augmentation, seconds as the file counts them, and the operations of its training.

On a GPU nothing is replaced. On a CPU, what the file takes from CUDA is: events by a wall clock,
weights and images in fp16 by float32 ones, and the network's arithmetic by autocast to bf16.

The file counts the seconds of its first layer's computation, of training with augmentation, and of
the test set's six views, by CUDA events that it waits for. It leaves out reading the data, building
the network, and each epoch's accuracy.
"""

import functools
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.console import ArgumentParser


class Event:
    """What the file asks of `torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.seconds - self.seconds)


def stand_in_for_cuda(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have what the file asks of CUDA done on the CPU, for the rest of this process."""
    replacements: dict[Any, dict[str, Any]] = {
        torch: {"load": functools.partial(_load, torch.load)},
        torch.cuda: {"Event": Event, "synchronize": lambda: None},
        Tensor: {"half": Tensor.float},
        nn.Module: {"half": nn.Module.float, "cuda": lambda module: module},
    }
    for owner, names in replacements.items():
        for name, replacement in names.items():
            replace(owner, name, replacement)


def _load(load: Any, path: str, map_location: Any = None) -> Any:
    return load(path, map_location="cpu")


def load_program(path: Path, device: torch.device) -> Any:
    """The file as a module; on a CPU its networks compute in bf16 and answer in float32."""
    spec = importlib.util.spec_from_file_location("airbench", path)
    assert spec is not None
    assert spec.loader is not None
    program: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    if device.type == "cuda":
        return program
    make_net = program.make_net

    def make_net_in_bf16() -> nn.Module:
        net = make_net()
        forward = net.forward

        def in_bf16(images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return forward(images).float()

        net.forward = in_bf16
        return net

    program.make_net = make_net_in_bf16
    return program


def operations(program: Any, steps: int, steps_with_bias: int) -> int:
    """Of forward and backward passes, a multiply-add as two; the first bias is frozen on the way.

    Counted for one image: all of them cost the same.
    """
    net, of_step = program.make_net(), {}
    image = torch.randn(1, 3, 32, 32).to(net[0].weight)
    for trained in (True, False):
        net[0].bias.requires_grad = trained
        with FlopCounterMode(display=False) as counter:
            net(image).sum().backward()
        of_step[trained] = counter.get_total_flops() * program.hyp["opt"]["batch_size"]
    first = min(steps, steps_with_bias)
    return first * of_step[True] + (steps - first) * of_step[False]


def write_images(
    folder: Path, train: bool, images: Tensor, labels: Tensor, classes: Sequence[str]
) -> None:
    """Write a split, uint8 (N, 3, 32, 32) and int64 (N,), as the file keeps what it downloads."""
    content = {
        "images": images.cpu().permute(0, 2, 3, 1).contiguous(),
        "labels": labels.cpu(),
        "classes": list(classes),
    }
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / ("train.pt" if train else "test.pt"))


def run(program: Any) -> dict[str, Any]:
    """Train once; accuracy, seconds and operations."""
    seen: dict[str, Any] = {}
    show = program.print_training_details

    def remember(variables: dict[str, Any], is_final_entry: bool) -> None:
        seen.update(variables)
        show(variables, is_final_entry)
        sys.stdout.flush()

    program.print_training_details = remember
    try:
        accuracy = program.main(0)
    finally:
        program.print_training_details = show
    with_bias = program.hyp["opt"]["whiten_bias_epochs"] * len(seen["train_loader"])
    return {
        "accuracy": accuracy,
        "seconds": seen["total_time_seconds"],
        "operations": operations(program, seen["current_steps"], with_bias),
    }


def main() -> None:
    parser = ArgumentParser("Run a file of airbench once.")
    parser.add_argument("file", type=Path, help="legacy/airbench94.py of a clone of it")
    file = parser.parse_args().file
    if not file.is_file():
        parser.error(f"{file} is not a file: clone KellerJordan/cifar10-airbench and name its own")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        stand_in_for_cuda()
    print(json.dumps(run(load_program(file, device))))


if __name__ == "__main__":
    main()
