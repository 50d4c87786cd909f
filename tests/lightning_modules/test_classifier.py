import copy
from math import inf, isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from callbacks import EMA, Divergence
from lightning_modules import ARCHITECTURES
from lightning_modules.classifier import ImageClassifier
from lightning_modules.distillation import Distillation
from lightning_modules.losses import jensen_shannon
from lightning_modules.metrics import accuracy_per_image
from lightning_modules.networks import count_parameters
from lightning_modules.optimizers import learning_rate_factor, make_optimizer


def small(name: str, **training: object) -> ImageClassifier:
    cls = ARCHITECTURES[name]
    return cls(**cls.quick | training)  # type: ignore[arg-type]


def test_its_defaults_are_sgd_with_a_cosine() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10)
    )
    expected = copy.deepcopy(network)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    batches = [(x, torch.arange(6)) for x in torch.randn(4, 6, 3, 32, 32)]
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        optimizer.step()
        scheduler.step()
    module = ImageClassifier(network)
    short_trainer().fit(module, DataLoader(batches, batch_size=None))
    torch.testing.assert_close(module.network.state_dict(), expected.state_dict())


def test_the_defaults_of_other_schedules_and_of_muon() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    hparams = ImageClassifier(network).hparams
    factors = {
        schedule: learning_rate_factor({**hparams, "schedule": schedule}, 1000)
        for schedule in ("onecycle", "step", "triangular")
    }
    assert [factors["onecycle"](step) for step in (0, 399)] == pytest.approx([1 / 25, 1])
    steps = [factors["step"](step) for step in (0, 299, 300, 599, 600, 799, 800)]
    assert steps == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04, 0.008])
    assert [factors["triangular"](x) for x in (0, 400, 1000)] == pytest.approx([0.2, 1, 0.07])
    warm = learning_rate_factor({**hparams, "warmup": 0.1}, 1000)
    assert warm(0) * hparams["lr"] == pytest.approx(0.001)
    _, muon = make_optimizer(network, {**hparams, "optimizer": "muon"}).param_groups
    assert (muon["lr"], muon["momentum"], muon["steps"]) == (0.24, 0.6, 5)


def test_the_default_radius_of_sam_is_its_papers() -> None:
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), sharpness="sam")
    before = [p.detach().clone() for p in module.parameters()]
    module.training_step((torch.randn(4, 3, 2, 2), torch.arange(4)), 0)
    moved = [(p - q).norm() for p, q in zip(module.parameters(), before, strict=True)]
    assert torch.stack(moved).norm().item() == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_an_image_classifier_within_the_budget(name: str) -> None:
    with torch.device("meta"):
        module = ARCHITECTURES[name]()  # type: ignore[call-arg]
    assert isinstance(module, ImageClassifier)
    assert count_parameters(module.network) <= 5_000_000


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_loads_from_its_checkpoint_as_it_was(name: str, tmp_path) -> None:
    module = small(name, lr=0.03)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    path = tmp_path / "module.ckpt"
    trainer.save_checkpoint(path)
    loaded = type(module).load_from_checkpoint(path, weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(images), module.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_widest_network_that_fits_is_named(name: str) -> None:
    module = small(name)
    count = count_parameters(module.network)
    width = module.hparams[module.grows]
    assert module.fitting_widths(count) == f"{module.grows} <= {width:g} fits ({count:,})"
    narrower = module.fitting_widths(count - 1)
    assert narrower is not None
    assert narrower.startswith(f"{module.grows} <= {width - module.grows_by:g} fits")
    assert module.fitting_widths(10) is None


def test_accuracy_on_labels_is_the_share_of_right_predictions() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    assert accuracy_per_image(logits, torch.tensor([1, 1])).tolist() == [1.0, 0.0]


def test_accuracy_on_soft_targets_is_the_targets_weight_on_the_prediction() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    targets = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    assert accuracy_per_image(logits, targets).tolist() == pytest.approx([0.7, 0.9])


@pytest.mark.parametrize("soft", [False, True])
def test_the_training_loss_is_smoothed_cross_entropy(soft: bool) -> None:
    module = small("sam_resnet", label_smoothing=0.1).eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    targets = F.one_hot(labels, 10).float() if soft else labels
    log_probabilities = module(images).log_softmax(1)
    smoothed = 0.9 * F.one_hot(labels, 10) + 0.1 / 10
    expected = -(smoothed * log_probabilities).sum(1).mean()
    torch.testing.assert_close(module.training_step((images, targets), 0), expected)


@pytest.mark.parametrize("suffix", ["", "_ema"])
def test_the_validation_loss_has_no_label_smoothing(suffix: str) -> None:
    module = small("sam_resnet", label_smoothing=0.1).eval()
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    with torch.no_grad():
        module.evaluate(module.network, (images, labels), suffix)
        expected = F.cross_entropy(module(images), labels)
    loss, _ = module.eval_metrics[suffix].compute()
    torch.testing.assert_close(loss, expected)


def test_the_first_of_three_views_is_classified_and_all_are_compared() -> None:
    module = small("sam_resnet", label_smoothing=0.1, jsd_weight=12.0)
    views, labels = torch.randn(4, 3, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    # All views are one batch and share its BatchNorm statistics.
    logits = module.network(views.flatten(0, 1)).unflatten(0, (4, 3))
    clean = F.cross_entropy(logits[:, 0], labels, label_smoothing=0.1)
    expected = clean + 12 * jensen_shannon(logits[:, 0], logits[:, 1], logits[:, 2])
    torch.testing.assert_close(module.training_step((views, labels), 0), expected)
    loss, accuracy = module.train_metric.compute()
    torch.testing.assert_close(loss, expected.detach())
    assert accuracy == (logits[:, 0].argmax(1) == labels).float().mean()
    alone = ImageClassifier(nn.Flatten(2)).loss(logits, labels)  # without jsd_weight
    torch.testing.assert_close(alone, F.cross_entropy(logits[:, 0], labels))
    answers = F.one_hot(torch.stack([labels, labels + 1, labels + 1], dim=1), 10).float()
    module = ImageClassifier(nn.Flatten())
    module.training_step((answers[..., None, None], labels), 0)
    assert module.train_metric.compute()[1] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("momentum", 1.0), ("weight_decay", -1.0), ("rising", 1.0), ("warmup", 1.0),
     ("warmup_lr", -0.1), ("label_smoothing", 1.0), ("jsd_weight", -1.0), ("gamma", 0.0),
     ("muon_steps", 0), ("lr", inf), ("weight_decay", inf)],
)  # fmt: skip
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}$"):
        small("sam_resnet", **{name: value})


@pytest.mark.parametrize("name", ["schedule", "optimizer", "sharpness"])
def test_an_unknown_choice_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got 'adam'$"):
        small("sam_resnet", **{name: "adam"})


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"speed_resnet"}))
def test_muon_is_rejected_if_convolutions_are_not_normalised(name: str) -> None:
    with pytest.raises(ValueError, match=r"^optimizer must be 'sgd' for .*, got 'muon', which"):
        small(name, optimizer="muon")


def test_muon_is_not_fused() -> None:
    with pytest.raises(ValueError, match=r"^fused must be False if optimizer is 'muon', got"):
        small("speed_resnet", optimizer="muon", fused=True)


def test_an_unknown_architecture_is_a_missing_key() -> None:
    assert ARCHITECTURES.get("resnet18") is None


@pytest.mark.parametrize(
    "length", [{"max_epochs": -1, "max_time": "00:00:01:00"}, {"max_steps": 0}]
)
def test_a_training_without_a_length_is_refused(length: dict[str, Any]) -> None:
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", **length)
    batch = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    with pytest.raises(MisconfigurationException, match=r"^schedules need a length of training "):
        trainer.fit(small("resnet"), [batch])


def test_a_trainer_validates_tests_and_predicts(tmp_path: Path) -> None:
    module = small("resnet")
    trainer = Trainer(
        logger=False, enable_progress_bar=False, accelerator="cpu", default_root_dir=tmp_path
    )
    images = torch.randn(13, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = module.eval()(images).detach()
    labels = (logits.argmax(1) + torch.arange(13) % 3 // 2) % 10  # 9 of 13 predictions are correct
    batches: Any = list(zip(images.split(8), labels.split(8), strict=True))
    loader = DataLoader(batches, batch_size=None)
    loss = F.cross_entropy(logits, labels).item()
    for split, loop in (
        ("val", trainer.validate),
        ("test", trainer.test),
        ("val", trainer.validate),
    ):
        (scores,) = loop(module, loader, verbose=False)
        assert scores == pytest.approx({f"{split}/loss": loss, f"{split}/acc": 9 / 13})
    predicted: Any = trainer.predict(module, loader)
    torch.testing.assert_close(torch.cat(predicted), logits)


def test_a_compiled_network_gets_batches_of_one_size() -> None:
    module, sizes = small("resnet").eval(), []
    images = torch.randn(8, 3, 32, 32)
    expected = module(images).detach()
    module.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        for compiled in (True, False):
            module.compiled = compiled
            for count in (8, 3, 8):
                predicted = module.predict_step((images[:count], torch.arange(count)), 0)
                torch.testing.assert_close(predicted, expected[:count])
    assert sizes == [8, 8, 8, 8, 3, 8]


@pytest.mark.parametrize("schedule", ["onecycle", "warmup_onecycle"])
def test_a_cycle_must_rise(schedule: str) -> None:
    with pytest.raises(ValueError, match=rf"^rising must be above 0 if schedule is {schedule}"):
        small("sam_resnet", schedule=schedule, rising=0.0)


@pytest.mark.parametrize("milestones", [(0.6, 0.3), (0.3, 1.0), (0.0, 0.5)])
def test_milestones_are_rising_shares(milestones: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"^milestones must be rising shares of training, got "):
        small("sam_resnet", milestones=milestones)


def test_after_the_first_epoch_nothing_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Train, and validate raw and averaged weights; the last batch is smaller."""
    compile_with = nn.Module.compile

    def compile_quickly(network: nn.Module, **options: Any) -> None:
        compile_with(network, backend="eager", dynamic=options["dynamic"])

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    torch._dynamo.reset()
    graphs: list[int] = []

    class Counts(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    generator = torch.Generator().manual_seed(0)

    def batches(*sizes: int) -> DataLoader[Any]:
        made: Any = [
            (torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n) % 10) for n in sizes
        ]
        return DataLoader(made, batch_size=None)

    train, val = batches(6, 6), batches(8, 8, 3)
    scores = []
    for compiled in (True, False):
        torch.manual_seed(0)
        module = small("sam_resnet", compile=compiled, base_width=4, blocks=(1, 1, 1))
        trainer = Trainer(
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
            default_root_dir=tmp_path,
            max_epochs=3,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            callbacks=[EMA(decay=0.5), *([Counts()] if compiled else [])],
        )
        trainer.fit(module, train, val)
        predicted: Any = trainer.predict(module, val)
        assert [len(logits) for logits in predicted] == [8, 8, 3]
        scores.append({k: float(v) for k, v in trainer.callback_metrics.items()} | {"p": predicted})
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * 3
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_an_average_is_evaluated_and_the_network_left_as_it_was() -> None:
    module = small("sam_resnet", base_width=4, blocks=(1, 1, 1)).eval()
    average = copy.deepcopy(module.network)
    with torch.no_grad():
        for p in average.parameters():
            p.mul_(0.9)
    states = [copy.deepcopy(x.state_dict()) for x in (module.network, average)]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    with torch.inference_mode():
        expected = F.cross_entropy(average(images), labels)
        module.evaluate(average, (images, labels), "_ema")
    torch.testing.assert_close(module.eval_metrics["_ema"].compute()[0], expected)
    with pytest.raises(RuntimeError):
        module.evaluate(average, (images[:, :2], labels), "_ema")  # wrong: two channels
    for network, state in zip((module.network, average), states, strict=True):
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("compile_", "modes"),
    [
        *((x, []) for x in (False, "auto", "graph")),
        *((x, [None]) for x in (True, "reduce-overhead")),
        ("max-autotune", ["max-autotune-no-cudagraphs"]),
    ],
)
def test_the_network_and_its_teachers_are_compiled_for_each_size(
    compile_: Any, modes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: calls.append(options))
    module = ImageClassifier(nn.Flatten(), compile=compile_)
    assert calls == [{"dynamic": False, "mode": mode} for mode in modes]
    assert module.compiled == bool(modes)
    module.learn_from(Distillation([nn.Flatten()]))
    assert calls[len(modes) :] == [{"dynamic": False}] * len(modes)


@pytest.mark.parametrize("soft", [False, True])
def test_the_accuracy_of_soft_targets_has_another_name(soft: bool) -> None:
    labels = torch.arange(4)
    targets = F.one_hot(labels, 10).float() if soft else labels
    trainer = short_trainer()
    batch = (torch.randn(4, 3, 32, 32), targets)
    trainer.fit(small("resnet"), DataLoader([batch], batch_size=None))
    assert {x for x in trainer.callback_metrics if "acc" in x} == {
        "train/acc_soft" if soft else "train/acc"
    }


def test_a_checkpoint_has_the_sums_of_a_begun_epoch() -> None:
    begun, resumed = (ImageClassifier(nn.Linear(2, 2)) for _ in range(2))
    begun.train_metric.update(torch.tensor(3.0), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    checkpoint: dict[str, Any] = {"state_dict": begun.state_dict()}
    begun.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    resumed.train_metric.update(torch.tensor(1.0), torch.ones(4))
    assert [x.item() for x in resumed.train_metric.compute()] == [2.0, 0.625]
    del checkpoint["train_metric"]  # as in an older checkpoint
    resumed.on_load_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint | {"train_metric": {}})


def test_compiling_leaves_no_trace_in_the_checkpoint() -> None:
    keys = small("sam_resnet").state_dict().keys()
    assert small("sam_resnet", compile=True, channels_last=True).state_dict().keys() == keys


def test_channels_last_reaches_weights_and_images() -> None:
    module = small("sam_resnet", channels_last=True)
    seen = []
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(torch.randn(2, 3, 32, 32))
    (filters, *_) = (m.weight for m in module.network.modules() if isinstance(m, nn.Conv2d))
    for tensor in (seen[0], filters):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def short_trainer(**options: Any) -> Trainer:
    silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Trainer(max_epochs=1, accelerator="cpu", **silent | options)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 3, 32, 32).byte(), torch.arange(4), r"^images must .* got torch.uint8$"),
        (torch.zeros(4, 3, 32, 32), torch.arange(4).int(), r"^labels must .* got torch.int32$"),
        (torch.zeros(4, 3, 32, 32), torch.arange(7, 11), r"^labels must .* 0 to 9, got 7 to 10$"),
        (torch.zeros(4, 3, 32, 32), torch.arange(-1, 3), r"^labels must .* 0 to 9, got -1 to 2$"),
    ],
)
def test_a_batch_of_a_wrong_dtype_or_label_is_named(images, labels, message) -> None:
    for loop in (short_trainer().fit, short_trainer().validate):
        with pytest.raises(ValueError, match=message):
            loop(small("resnet"), DataLoader([(images, labels)], batch_size=None))


@pytest.mark.parametrize(
    ("make", "last"),
    [(lambda: small("resnet", classes=7), 6), (lambda: ImageClassifier(nn.Flatten()), 9)],
)
def test_labels_are_checked_against_the_number_of_classes(make, last) -> None:
    module, images = make(), torch.zeros(1, 3, 32, 32)
    batch = images, torch.tensor([last])
    assert module.on_before_batch_transfer(batch, 0) is batch
    with pytest.raises(ValueError, match=f"^labels must .* 0 to {last}, got {last + 1}"):
        short_trainer().fit(
            module, DataLoader([(images, torch.tensor([last + 1]))], batch_size=None)
        )


@pytest.mark.parametrize("limit", [None, 1e-3])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_norm_of_an_epochs_last_gradient_before_clipping_is_logged(limit, algorithm) -> None:
    module, batch = small("resnet", lr=1e-9), (torch.randn(4, 3, 32, 32), torch.arange(4))
    same = copy.deepcopy(module)
    F.cross_entropy(same(batch[0]), batch[1]).backward()
    norm = torch.stack([p.grad.norm() for p in same.parameters()]).norm()
    trainer = short_trainer(gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    trainer.fit(module, DataLoader([batch] * 3, batch_size=None))
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["train/gradient_norm"], norm, rtol=1e-3, atol=0)
    assert "train/loss_scale" not in logged


@pytest.mark.parametrize(("batches", "max_steps"), [(9, 2), (2, 5)])
def test_only_the_last_step_of_an_epoch_or_of_training_computes_the_norm(
    batches: int, max_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[bool] = []

    def clip(*arguments: Any, wants_norm: bool) -> None:
        norms.append(wants_norm)

    monkeypatch.setattr("lightning_modules.classifier.clip_gradients", clip)
    batch = (torch.randn(4, 3, 32, 32), torch.arange(4))
    trainer = short_trainer(max_steps=max_steps)
    trainer.fit(small("resnet"), DataLoader([batch] * batches, batch_size=None))
    assert norms == [False, True]


def test_the_scale_of_fp16_is_logged() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    trainer = short_trainer(plugins=MixedPrecision("16-mixed", "cpu", scaler))
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))] * 4
    trainer.fit(small("resnet"), DataLoader(batches, batch_size=None))
    assert trainer.callback_metrics["train/loss_scale"] == 32


def test_an_overflow_of_sams_gradient_in_fp16_is_not_divergence(tmp_path: Path) -> None:
    losses: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            losses.append(float(outputs["loss"]))

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**30))
    callbacks = [Losses(), Divergence(str(tmp_path))]
    trainer = short_trainer(plugins=plugin, callbacks=callbacks)
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))] * 20
    trainer.fit(small("resnet", sharpness="sam"), DataLoader(batches, batch_size=None))
    finite = [isfinite(x) for x in losses]
    assert not finite[0]
    assert finite[-1]
