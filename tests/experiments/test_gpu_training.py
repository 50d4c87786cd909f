"""Training on a GPU: every architecture and precision, compiled networks, resumed runs."""

import math

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lightning_modules import ARCHITECTURES

pytestmark = pytest.mark.gpu

GPU = "--trainer.accelerator=gpu"
# The dropout of this architecture draws from the GPU's generator.
DROPOUT = ("--arch=enhanced_efficient_resnet", "--model.base_width=4", "--model.dropout=0.2")


class Interrupt(Callback):
    """Raises in the second step of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            raise InterruptedError


def checkpoint(folder, name="last.ckpt"):
    return torch.load(folder / name, weights_only=True, map_location="cpu")


def assert_trained(run, precision):
    """The run was on the GPU, in this precision, and ended with finite weights and scores."""
    record = run.record
    assert torch.cuda.get_device_name() in record.device
    assert record.precision == precision
    for scores in record.scores.values():
        assert all(math.isfinite(score.nll) for score in scores.values())
    weights = checkpoint(run.folder)["state_dict"].values()
    assert all(x.isfinite().all() for x in weights if x.is_floating_point())


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_quick_learns_in_16_bits(command, tmp_path, arch, precision):
    flags = [f"--arch={arch}", "--quick", "--data.source=synthetic", "--wandb=disabled"]
    where = [f"--output={tmp_path}", "--name=quick", "--trainer.enable_progress_bar=false"]
    run = command([*flags, *where, GPU, f"--trainer.precision={precision}"])
    assert_trained(run, precision)
    assert run.record.scores["test"][run.record.selected].accuracy > 0.3


def test_a_gpu_is_used_by_default_in_bf16_if_it_has_that(experiment):
    run = experiment("--trainer.accelerator=auto", "--trainer.precision=auto")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert_trained(run, "bf16-mixed" if has_bf16 else "16-mixed")


@pytest.mark.parametrize("sharpness", ["sam", "asam"])
def test_sam_trains_with_scaled_gradients(experiment, sharpness):
    flags = (f"--model.sharpness={sharpness}", "--trainer.precision=16-mixed")
    run = experiment(*flags, GPU, "--trainer.limit_train_batches=20")
    assert_trained(run, "16-mixed")
    # A scale at its start of 2 ** 16 overflows in some steps, which move no weight.
    moved = [
        state["momentum_buffer"].any()
        for state in checkpoint(run.folder)["optimizer_states"][0]["state"].values()
    ]
    assert all(moved)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_compiled_network_learns_the_same(experiment, precision):
    flags = (GPU, f"--trainer.precision={precision}", "--trainer.limit_train_batches=20")
    plain, compiled = experiment(*flags), experiment(*flags, "--model.compile=true")
    assert_trained(compiled, precision)
    assert checkpoint(compiled.folder)["state_dict"].keys() == (
        checkpoint(plain.folder)["state_dict"].keys()
    )
    # Rounding differs, and 40 steps amplify it.
    expected = plain.record.scores["val"]["raw"].nll
    assert compiled.record.scores["val"]["raw"].nll == pytest.approx(expected, rel=0.05)
    assert compiled.record.steps == plain.record.steps == 40


@pytest.mark.parametrize("flags", [(), DROPOUT], ids=["sam_resnet", "dropout"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_an_interrupted_run_is_resumed(experiment, tiny, command, flags, precision):
    flags = (*flags, GPU, f"--trainer.precision={precision}", "--trainer.max_epochs=3")
    expected = experiment(*flags)
    argv = tiny(*flags)
    with pytest.raises(InterruptedError):
        command(argv, callbacks=[Interrupt()])
    output, name = (flag for flag in argv if flag.startswith(("--output=", "--name=")))
    arch = yaml.safe_load((expected.folder / "config.yaml").read_text())["arch"]
    run = command([f"--arch={arch}", output, name, "--ckpt_path=last"])
    assert len(run.record.command) == 2
    assert_trained(run, precision)
    assert (run.record.epochs, run.record.steps) == (3, 9)

    ours, theirs = checkpoint(run.folder), checkpoint(expected.folder)
    random_state = ours["callbacks"]["RandomState"]["cuda"]
    assert torch.equal(random_state, theirs["callbacks"]["RandomState"]["cuda"])
    assert ours.get("MixedPrecision") == theirs.get("MixedPrecision")
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    # Sums on a GPU have no fixed order: the weights are equal up to rounding.
    expected = theirs["state_dict"]["network.head.weight"]
    found = ours["state_dict"]["network.head.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * expected.abs().max().item())
