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
    """Assert that the run used the GPU in this precision, with finite weights and scores."""
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
    # The initial scale of 2 ** 16 overflows in the first steps, which are skipped.
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


# The preset's rates are for batches of 1,250 images.
SPEED = ("--arch=speed_resnet", "--model.base_width=8", "--model.lr=0.1",
         "--model.bias_lr_factor=8", "--trainer.max_steps=-1")  # fmt: skip
CAPTURED = ("graph", "reduce-overhead", "max-autotune")
LONGER = (GPU, "--trainer.limit_train_batches=20")


class Captures(Callback):
    """Records the number of graphs at the end of each epoch."""

    def __init__(self):
        self.counts = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.counts.append(pl_module.captured.captures)


@pytest.mark.parametrize("mode", CAPTURED)
def test_a_captured_step_learns_the_same(experiment, mode):
    flags = (*LONGER, "--trainer.precision=bf16-mixed", "--trainer.max_epochs=3")
    captures = Captures()
    plain = experiment(*flags)
    captured = experiment(*flags, f"--model.compile={mode}", callbacks=[captures])
    assert_trained(captured, "bf16-mixed")
    assert captures.counts == [1, 1, 1]
    expected = plain.record.scores["val"]["raw"].nll
    assert captured.record.scores["val"]["raw"].nll == pytest.approx(expected, rel=0.05)


# Flags and number of graphs: one for the first batch of an optimizer step, one for the others.
COMBINATIONS = {
    "32": (("--trainer.precision=32-true",), 1),
    "fp16": (("--trainer.precision=16-mixed",), 1),
    "sam": (("--model.sharpness=sam",), 1),
    "sam-fp16": (("--model.sharpness=sam", "--trainer.precision=16-mixed"), 1),
    "asam": (("--model.sharpness=asam", "--model.rho=0.5"), 1),
    "accumulation": (("--trainer.accumulate_grad_batches=3",), 2),
    "accumulation-fp16": (
        ("--trainer.accumulate_grad_batches=3", "--trainer.precision=16-mixed"),
        2,
    ),
    "cutmix": (("--data.mixup_p=0.5", "--data.cutmix_alpha=1", "--data.cutmix_p=0.5"), 1),
    "augmix": (("--data.policy=augmix", "--model.jsd_weight=12", "--data.mixup_alpha=0"), 1),
    "swa": (("--ema=false", "--swa.start=0.5"), 1),
    "fused": (("--model.fused=true",), 1),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_captured_step_works_with_everything_else(experiment, name):
    flags, graphs = COMBINATIONS[name]
    flags = (*LONGER, "--trainer.precision=bf16-mixed", "--model.lr=0.02", *flags)
    captures = Captures()
    plain = experiment(*flags)
    captured = experiment(*flags, "--model.compile=graph", callbacks=[captures])
    assert_trained(captured, plain.record.precision)
    assert captures.counts == [graphs, graphs]
    assert captured.record.steps == plain.record.steps
    for weights, score in plain.record.scores["val"].items():
        found = captured.record.scores["val"][weights].nll
        assert found == pytest.approx(score.nll, rel=0.05), weights


def test_dropout_draws_the_same_numbers_in_a_graph(experiment):
    flags = (*DROPOUT, *LONGER, "--trainer.precision=32-true")
    states = []
    for mode in ("false", "graph"):
        run = experiment(*flags, f"--model.compile={mode}")
        states.append(checkpoint(run.folder)["callbacks"]["RandomState"]["cuda"])
    assert torch.equal(*states)


def test_speed_resnets_frozen_bias_has_a_separate_graph(experiment):
    captures = Captures()
    run = experiment(*SPEED, *LONGER, "--model.compile=graph", callbacks=[captures])
    assert_trained(run, "32-true")
    assert captures.counts == [2, 2]  # the bias is trained only in the first 30% of training


@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
def test_after_the_first_epoch_nothing_is_compiled_again(experiment, mode):
    graphs = []

    class Counts(Callback):
        def on_validation_end(self, trainer, pl_module):
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    # The 200 validation images form batches of 80, 80 and 40.
    flags = (*LONGER, "--trainer.max_epochs=3", "--trainer.num_sanity_val_steps=0")
    experiment(*flags, "--data.eval_batch_size=80", f"--model.compile={mode}", callbacks=[Counts()])
    assert graphs == [graphs[0]] * 3


@pytest.mark.parametrize("layout", ["true", "false"])
def test_muon_in_batches_learns_as_on_a_cpu(experiment, layout):
    flags = (*SPEED, f"--model.channels_last={layout}", "--trainer.limit_train_batches=20")
    on_cpu = experiment(*flags).record.scores["val"]["raw"].nll
    for mode in ("false", "true"):
        run = experiment(*flags, GPU, f"--model.compile={mode}")
        assert run.record.scores["val"]["raw"].nll == pytest.approx(on_cpu, rel=0.1)


@pytest.mark.parametrize(
    "flags", [(), DROPOUT, ("--model.compile=graph",)], ids=["sam_resnet", "dropout", "graph"]
)
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
