import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional as F

from callbacks import EMA, SWA
from callbacks.swa import cyclic_rate


class WeightsAtEpochEnds(Callback):
    """Copies the network's parameters at the end of each epoch."""

    def __init__(self):
        self.weights = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append([p.detach().clone() for p in pl_module.network.parameters()])


class StopAfter(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == self.epoch


def test_a_cycle_falls_linearly_and_ends_on_its_minimum():
    rates = [cyclic_rate(step, cycle=4, lr=0.5, lr_min=0.1) for step in range(5)]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.4])
    assert rates[3] == 0.1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1 / (1 + step) for step in range(14, 28)]),
        ({"lr": 0.02}, [0.02] * 14),
        (
            {"lr": 0.02, "schedule": "cyclic", "lr_min": 0.006},
            [0.018, 0.016, 0.014, 0.012, 0.01, 0.008, 0.006] * 2,
        ),
        (
            {"lr": 0.028, "schedule": "cyclic", "cycle_epochs": 2},
            [0.028 - 0.002 * step for step in range(1, 15)],
        ),
    ],
)
def test_the_rate_of_every_step_from_its_start_on(fit, tiny, options, expected):
    module = tiny()
    fit(module, SWA(start=0.5, **options), max_epochs=4)
    assert module.rates == pytest.approx([0.1 / (1 + step) for step in range(14)] + expected)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("options", "max_epochs", "averaged"),
    [
        ({"start": 0.5}, 4, [2, 3]),
        ({"start": 0.0}, 3, [0, 1, 2]),
        ({"start": 0.75}, 1, [0]),
        ({"start": 0.2, "schedule": "cyclic", "cycle_epochs": 2}, 5, [2, 4]),
        ({"start": 0.0, "schedule": "cyclic", "cycle_epochs": 2}, 3, [1]),
    ],
)
def test_the_average_is_the_mean_of_the_weights_at_epoch_ends_the_last_too(
    fit, tiny, options, max_epochs, averaged, accumulate
):
    swa, record = SWA(lr=0.05, **options), WeightsAtEpochEnds()
    fit(tiny(), swa, record, max_epochs=max_epochs, accumulate_grad_batches=accumulate)
    assert swa.state_dict()["updates"] == len(averaged)
    models = zip(*(record.weights[epoch] for epoch in averaged), strict=True)
    for p, weights in zip(swa.network.parameters(), models, strict=True):
        torch.testing.assert_close(p, torch.stack(weights).mean(dim=0))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize(
    ("bn_batches", "options", "seen"),
    [
        (None, {}, 7),
        (None, {"limit_val_batches": 0}, 7),
        (3, {}, 3),
        (1, {}, 1),
        (100, {}, 7),
        (None, {"limit_train_batches": 2}, 2),
    ],
)
def test_batch_norm_has_the_averaged_weights_statistics_on_training_batches(
    fit, tiny, train_batches, bn_batches, options, seen, precision
):
    swa = SWA(start=0.5, lr=0.05, bn_batches=bn_batches)
    fit(tiny(), swa, max_epochs=4, precision=precision, **options)
    conv, norm = swa.network[0], swa.network[1]
    assert not any(p.requires_grad for p in swa.network.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        inputs = [images.to(conv.weight.dtype) for images, _ in train_batches.batches[:seen]]
        maps = [conv(images).to(conv.weight.dtype) for images in inputs]
    # Mean and unbiased variance of each batch, averaged over the batches with equal weights.
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in maps])
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in maps])
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))
    assert norm.num_batches_tracked == seen
    assert norm.momentum == 0.1


def test_several_views_of_an_image_are_images_to_batch_norm(fit, tiny, train_batches):
    class OfViews(tiny):
        def training_step(self, batch, batch_idx):
            views, labels = batch
            return super().training_step((views[:, 0], labels), batch_idx)

    train_batches.batches = [
        (torch.stack((x, x.flip(-1), -x), dim=1), labels) for x, labels in train_batches.batches
    ]
    swa = SWA(start=0.5)
    fit(OfViews(), swa, max_epochs=2)
    conv, norm = swa.network[0], swa.network[1]
    maps = [conv(views.flatten(0, 1)) for views, _ in train_batches.batches]
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in maps])
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))


def test_groups_with_another_rate_keep_the_ratio(fit, tiny):
    class Grouped(tiny):
        def configure_optimizers(self):
            slow, *fast = self.network.parameters()
            groups = [{"params": [slow]}, {"params": fast, "lr": 0.8}]
            optimizer = torch.optim.SGD(groups, lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)]

        def on_before_optimizer_step(self, optimizer):
            assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.4]

    fit(Grouped(), SWA(start=0.0, lr=0.05))


def test_it_sets_the_rate_of_a_module_without_a_schedule(fit, tiny):
    class Constant(tiny):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=0.1)

    module = Constant()
    fit(module, SWA(start=0.5, lr=0.05))
    assert module.rates == [0.1] * 7 + [0.05] * 7


def test_the_average_is_validated_from_its_first_model_to_the_last_epoch(fit, tiny, val_batches):
    module, swa = tiny(), SWA(start=0.5, lr=0.05)
    fit(module, swa, max_epochs=4)
    seen = ["val/acc_swa" in metrics for metrics in module.validations]
    assert seen == [False, False, True, True]
    with torch.no_grad():
        losses = [F.cross_entropy(swa.network(images), labels) for images, labels in val_batches]
    assert module.validations[-1]["val/loss_swa"] == (sum(losses) / len(losses)).item()


def test_outside_fit_only_the_raw_weights_are_validated(fit, tiny, val_batches):
    module = tiny()
    trainer = fit(module, SWA())
    (metrics,) = trainer.validate(module, val_batches, verbose=False)
    assert metrics.keys() == {"val/loss", "val/acc"}


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}])
def test_beyond_the_rate_training_is_the_same_without_it(fit, tiny, options):
    # If recomputing BatchNorm drew random numbers, dropout would change.
    averaged, plain = tiny(dropout=0.5), tiny(dropout=0.5)
    torch.manual_seed(3)
    trainer = fit(averaged, SWA(start=0.25), max_epochs=4, **options)
    torch.manual_seed(3)
    fit(plain, max_epochs=4, **options)
    assert trainer.global_step == 28
    for name, value in plain.network.state_dict().items():
        assert torch.equal(averaged.network.state_dict()[name], value), name


def test_stopping_early_keeps_the_average_so_far(fit, tiny):
    swa, record = SWA(start=0.25, lr=0.05), WeightsAtEpochEnds()
    fit(tiny(), swa, record, StopAfter(epoch=2), max_epochs=4)
    models = zip(*record.weights[1:3], strict=True)
    for p, weights in zip(swa.network.parameters(), models, strict=True):
        torch.testing.assert_close(p, torch.stack(weights).mean(dim=0))


@pytest.mark.parametrize("options", [{}, {"schedule": "cyclic", "cycle_epochs": 2}])
def test_resuming_before_and_within_the_average_is_exact(resume_is_exact, options):
    resume_is_exact(lambda: SWA(start=0.25, lr=0.05, **options))


@pytest.mark.parametrize("callbacks", [(EMA(), SWA()), (SWA(), EMA())])
def test_ema_together_with_it_is_rejected(fit, tiny, callbacks):
    with pytest.raises(MisconfigurationException, match="EMA and SWA must not be on together"):
        fit(tiny(), *callbacks)


@pytest.mark.parametrize(
    ("options", "trainer_options", "message"),
    [
        ({"cycle_epochs": 3}, {"max_epochs": 8}, "cycle_epochs must be at most 2"),
        ({}, {"max_epochs": -1, "max_steps": 5}, "needs max_epochs above 0, got -1"),
    ],
)
def test_a_training_without_a_possible_average_is_rejected(
    fit, tiny, options, trainer_options, message
):
    with pytest.raises(MisconfigurationException, match=message):
        fit(tiny(), SWA(**options), **trainer_options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": 1.0}, r"start must be in \[0, 1\), a share of the epochs, got 1.0"),
        ({"start": -0.1}, r"start must be in \[0, 1\)"),
        ({"schedule": "linear"}, "schedule must be 'constant' or 'cyclic', got 'linear'"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"schedule": "cyclic"}, "lr must be given for schedule 'cyclic'"),
        (
            {"schedule": "cyclic", "lr": 0.1, "lr_min": 0.1},
            r"lr_min must be in \[0, lr\), got 0.1 with lr 0.1",
        ),
        ({"lr_min": -1.0}, r"lr_min must be in \[0, lr\), got -1.0"),
        ({"cycle_epochs": 0}, "cycle_epochs must be 1 or more, got 0"),
        ({"bn_batches": 0}, "bn_batches must be 1 or more, got 0"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SWA(**wrong)
