"""Captured steps on a CPU. tests/experiments/test_gpu_training.py tests them on a GPU."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_modules import classifier
from lightning_modules.captured_step import CapturedStep
from lightning_modules.classifier import ImageClassifier
from lightning_modules.distillation import Distillation


class RecordedStep(CapturedStep):
    """Behaves as a CUDA graph: recording changes no value, and tensors keep their addresses.

    Each replay calls the recorded function. It overwrites the gradients that the recording
    allocated. If gradients existed before the recording, it adds to them.
    """

    def _warm_up(self, work):
        work()

    def _record(self, work):
        changed = [*self._network.parameters(), *self._network.buffers()]
        before = [x.detach().clone() for x in changed]
        trained = [p for p in self._network.parameters() if p.requires_grad]
        adds = trained[0].grad is not None
        sums = [p.grad.clone() for p in trained] if adds else []
        with torch.random.fork_rng([]):
            results = work()
        gradients = [p.grad for p in trained]
        with torch.no_grad():
            for x, value in zip(changed, before, strict=True):
                x.copy_(value)
            for gradient, value in zip(gradients, sums, strict=adds):
                gradient.copy_(value)

        def replay():
            for p, gradient in zip(trained, gradients, strict=True):
                p.grad = gradient if adds else None
            for static, new in zip(results, work(), strict=True):
                static.copy_(new)
            if not adds:
                torch._foreach_copy_(gradients, [p.grad for p in trained])

        return results, replay


@pytest.fixture
def steps(monkeypatch):
    """Let a CPU use captured steps; return the list of all created steps."""
    made = []
    setup = ImageClassifier.setup

    def setup_with_steps(module, stage):
        setup(module, stage)
        if module.hparams["compile"] == "graph":
            module.captured = RecordedStep(module.network, module._forward_and_backward)
            made.append(module.captured)

    monkeypatch.setattr(ImageClassifier, "setup", setup_with_steps)
    return made


def make_network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def make_batches(count=7, soft=False, views=()):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 16, *views, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (count, 16), generator=generator)
    targets = F.one_hot(labels, 10).float() if soft else labels
    return DataLoader(list(zip(images, targets, strict=True)), batch_size=None)


def fit(module, batches, callbacks=(), ckpt_path=None, **options):
    silence = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False,
               "enable_checkpointing": False, "use_distributed_sampler": False}  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, callbacks=list(callbacks), **silence | options
    )
    torch.manual_seed(3)
    trainer.fit(module, batches, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def assert_equal_runs(module, trainer, other, expected):
    """Assert that weights, buffers, momenta and metrics are equal bit for bit."""
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert trainer.callback_metrics == expected.callback_metrics
    states = [t.optimizers[0].state_dict()["state"] for t in (trainer, expected)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("hparams", "options", "captures"),
    [
        ({}, {}, 1),
        ({"label_smoothing": 0.1, "nesterov": True}, {"gradient_clip_val": 0.1}, 1),
        ({"fused": True}, {"precision": "bf16-mixed", "gradient_clip_val": 0.1}, 1),
        # The 7 batches of an epoch form steps of 3, 3 and 1 batches.
        ({}, {"accumulate_grad_batches": 3}, 2),
        ({"sharpness": "sam"}, {"precision": "bf16-mixed"}, 1),
        ({"sharpness": "asam", "rho": 0.5}, {"accumulate_grad_batches": 2}, 2),
    ],
    ids=["plain", "clipping", "fused", "accumulation", "sam", "asam-accumulation"],
)
def test_a_captured_training_equals_the_same_training_without(steps, hparams, options, captures):
    runs = []
    for mode in (False, "graph"):
        module = ImageClassifier(make_network(dropout=0.3), compile=mode, **hparams)
        runs += [module, fit(module, make_batches(), **options)]
    assert [step.captures for step in steps] == [captures]
    assert_equal_runs(*runs[2:], *runs[:2])


def test_a_captured_student_equals_the_same_student_without(steps):
    runs = []
    for mode in (False, "graph"):
        module = ImageClassifier(make_network(dropout=0.3), compile=mode)
        module.learn_from(Distillation([make_network(), make_network(dropout=0.5)]))
        runs += [module, fit(module, make_batches(soft=True), precision="bf16-mixed")]
    assert [step.captures for step in steps] == [1]
    assert_equal_runs(*runs[2:], *runs[:2])


@pytest.mark.parametrize("scale", [2.0**10, 2.0**24], ids=["fits", "overflows"])
@pytest.mark.parametrize("sharpness", ["none", "sam"])
def test_in_fp16_it_follows_the_loss_scaler(steps, sharpness, scale):
    runs, scales = [], []
    for mode in (False, "graph"):
        module = ImageClassifier(make_network(), compile=mode, sharpness=sharpness)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        options = {"plugins": [plugin], "gradient_clip_val": 0.3, "accumulate_grad_batches": 2}
        runs += [module, fit(module, make_batches(), **options)]
        scales.append(scaler.get_scale())
    assert scales[0] == scales[1] != scale
    assert_equal_runs(*runs[2:], *runs[:2])


@pytest.mark.parametrize(("soft", "views"), [(True, ()), (False, (3,))], ids=["mixed", "views"])
def test_it_takes_mixed_targets_and_several_views(steps, soft, views):
    runs = []
    for mode in (False, "graph"):
        module = ImageClassifier(make_network(), compile=mode, jsd_weight=12.0 if views else 0.0)
        runs += [module, fit(module, make_batches(soft=soft, views=views))]
    assert_equal_runs(*runs[2:], *runs[:2])


def test_another_batch_size_and_frozen_parameters_have_separate_graphs(steps):
    class Rests(ImageClassifier):
        def on_train_batch_start(self, batch, batch_idx):
            self.network[0].bias.requires_grad_(batch_idx < 4)

        def on_before_optimizer_step(self, optimizer):
            if not self.network[0].bias.requires_grad:
                self.network[0].bias.grad = None

    batches = [(images[: 16 - 4 * (i % 2)], y[: 16 - 4 * (i % 2)])
               for i, (images, y) in enumerate(make_batches())]  # fmt: skip
    runs = []
    for mode in (False, "graph"):
        module = Rests(make_network(), compile=mode)
        runs += [module, fit(module, DataLoader(batches, batch_size=None))]
    assert [step.captures for step in steps] == [4]
    assert_equal_runs(*runs[2:], *runs[:2])


class SaveWithin(Callback):
    """Saves a checkpoint after the fourth batch, the first of three of an optimizer step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (0, 3):
            trainer.save_checkpoint(self.path)


def test_a_run_resumed_within_an_optimizer_step_equals_an_undisturbed_run(steps, tmp_path):
    # Lightning does not save gradients: the resumed step has only those after the checkpoint.
    options = {"accumulate_grad_batches": 3}
    module = ImageClassifier(make_network())
    fit(module, make_batches(), [SaveWithin(tmp_path / "within.ckpt")], **options)
    runs = []
    for mode in (False, "graph"):
        module = ImageClassifier(make_network(), compile=mode)
        path = tmp_path / "within.ckpt"
        runs += [module, fit(module, make_batches(), ckpt_path=path, **options)]
    assert_equal_runs(*runs[2:], *runs[:2])


@pytest.mark.parametrize(
    ("mode", "how"),
    [("graph", "not compiled"), ("reduce-overhead", "compiled"), ("max-autotune", "compiled")],
)
def test_a_missing_gpu_is_named(monkeypatch, mode, how):
    said = []
    monkeypatch.setattr(classifier, "rank_zero_info", said.append)
    monkeypatch.setattr(nn.Module, "compile", lambda network, **options: None)
    module = ImageClassifier(make_network(), compile=mode)
    fit(module, make_batches())
    assert module.captured is None
    assert said == [
        f"--model.compile {mode}: training without CUDA graphs, which need one GPU; the network is "
        f"{how}"
    ]


@pytest.mark.parametrize("value", ["fastest", "True"])
def test_an_unknown_mode_is_named(value):
    with pytest.raises(ValueError, match=rf"^compile must be one of auto, graph, .*'{value}'$"):
        ImageClassifier(make_network(), compile=value)
