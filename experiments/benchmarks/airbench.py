"""Run the public speed-run, an unchanged file of KellerJordan/cifar10-airbench.

python experiments/benchmarks/airbench.py cifar10-airbench/legacy/airbench94.py

The file runs once, in the current folder, and downloads CIFAR-10 to its subfolder `cifar10`. The
last line of output is for `benchmark.py time-to-accuracy --beside`. The file counts the seconds of
computing its first layer, of training, and of predicting the test set with six views.

On a GPU the file runs unchanged. On a CPU a wall clock replaces CUDA's events, float32 replaces
weights and images in fp16, and autocast to bf16 replaces the network's arithmetic in fp16.
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

from experiments.console import ArgumentParser, command


class Event:
    """The part of `torch.cuda.Event` that the file uses, with a wall clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.seconds - self.seconds)


def stand_in_for_cuda(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the CUDA functions that the file uses, for the rest of this process."""
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
    """Import the file; on a CPU its networks compute in bf16 and return float32."""
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
    """Operations of all forward and backward passes; a multiply-add is two.

    The first bias is trained in `steps_with_bias` steps. One image is counted; all cost the same.
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
    """Write uint8 (N, 3, 32, 32) and int64 (N,) in the format of the file's download."""
    content = {
        "images": images.cpu().permute(0, 2, 3, 1).contiguous(),
        "labels": labels.cpu(),
        "classes": list(classes),
    }
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / ("train.pt" if train else "test.pt"))


def run(program: Any) -> dict[str, Any]:
    """Train once, and return accuracy, seconds and operations."""
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


@command
def main() -> None:
    parser = ArgumentParser("Run a file of airbench once.")
    parser.add_argument("file", type=Path, help="legacy/airbench94.py of a clone")
    file = parser.parse_args().file
    if not file.is_file():
        parser.error(f"{file} is not a file: clone KellerJordan/cifar10-airbench and name its file")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        stand_in_for_cuda()
    print(json.dumps(run(load_program(file, device))))


if __name__ == "__main__":
    main()
