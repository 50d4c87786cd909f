import json
import sys

from experiments.benchmarks import airbench

# A program of the public one's shape: what it asks of CUDA, and what is asked of it.
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
    # Forward, and of the linear layer the gradients of its weights and its input; two of the five
    # steps also train the first bias, for which no product is computed beyond that.
    with_bias, without = convolution + 3 * linear, convolution + 2 * linear
    assert found["operations"] == 4 * (2 * with_bias + 3 * without)


def test_a_file_that_is_not_there_is_one_line(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(sys, "argv", ["airbench.py", str(tmp_path / "none.py")])
    assert refusal(act=airbench.main).startswith(f"{tmp_path / 'none.py'} is not a file: clone")
