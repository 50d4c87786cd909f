"""The public speed-run on a CPU: a file of KellerJordan/cifar10-airbench, as it is.

python experiments/benchmarks/airbench.py cifar10-airbench/legacy/airbench94.py

It is run once, in the folder where this is started, with what it takes from CUDA replaced: events
by a wall clock, weights and images in fp16 by float32 ones, and the network's arithmetic by
autocast to bf16. It downloads CIFAR-10 to `cifar10` there. The last line of output is what
`benchmark.py time-to-accuracy --beside` reads: accuracy with the file's own test-time augmentation,
seconds as the file counts them, and the operations of its training.
"""

import functools
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.training.launch import ArgumentParser


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


def load_program(path: Path) -> Any:
    """The file as a module, whose networks compute in bf16 and answer in float32."""
    spec = importlib.util.spec_from_file_location("airbench", path)
    assert spec is not None
    assert spec.loader is not None
    program: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
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
    for trained in (True, False):
        net[0].bias.requires_grad = trained
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(1, 3, 32, 32)).sum().backward()
        of_step[trained] = counter.get_total_flops() * program.hyp["opt"]["batch_size"]
    first = min(steps, steps_with_bias)
    return first * of_step[True] + (steps - first) * of_step[False]


def run(program: Any) -> dict[str, Any]:
    """Train once, and say what came of it."""
    seen: dict[str, Any] = {}
    show = program.print_training_details

    def remember(variables: dict[str, Any], is_final_entry: bool) -> None:
        seen.update(variables)
        show(variables, is_final_entry)
        sys.stdout.flush()

    program.print_training_details = remember
    accuracy = program.main(0)
    with_bias = program.hyp["opt"]["whiten_bias_epochs"] * len(seen["train_loader"])
    return {
        "accuracy": accuracy,
        "seconds": seen["total_time_seconds"],
        "operations": operations(program, seen["current_steps"], with_bias),
    }


def main() -> None:
    parser = ArgumentParser("Run a file of airbench on a CPU, once.")
    parser.add_argument("file", type=Path, help="legacy/airbench94.py of a clone of it")
    file = parser.parse_args().file
    if not file.is_file():
        parser.error(f"{file} is not a file: clone KellerJordan/cifar10-airbench and name its own")
    stand_in_for_cuda()
    print(json.dumps(run(load_program(file))))


if __name__ == "__main__":
    main()
