from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from callbacks import EMA, Lookahead
from callbacks.ema import ema_decay, ema_update


def test_the_decay_warms_up_to_its_value():
    warming = [ema_decay(updates, 0.5, warmup=True) for updates in (0, 1, 5, 8, 9, 1000)]
    assert warming == [1 / 10, 2 / 11, 6 / 15, 9 / 18, 0.5, 0.5]
    assert ema_decay(0, 0.999, warmup=False) == 0.999


def test_an_update_keeps_the_share_decay_of_the_average():
    averages = [torch.tensor([1.0]), torch.tensor([[4.0, 8.0]])]
    ema_update(averages, [torch.tensor([2.0]), torch.tensor([[0.0, 4.0]])], decay=0.75)
    assert [average.tolist() for average in averages] == [[1.25], [[3.0, 7.0]]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_equals_torchs_average_of_a_plain_loop_bit_for_bit(fit, tiny, train_plainly, accumulate):
    network = tiny().network
    expected = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    expected.update_parameters(network)  # its first call copies the initial weights
    train_plainly(network, lambda: expected.update_parameters(network), accumulate=accumulate)
    module, ema = tiny(), EMA(decay=0.9, warmup=False)
    trainer = fit(module, ema, accumulate_grad_batches=accumulate)

    assert ema.updates == trainer.global_step
    assert not any(p.requires_grad for p in ema.network.parameters())
    average = ema.network.state_dict()
    # torch truncates the averaged count of batches; ours is the network's.
    assert average.pop("1.num_batches_tracked") == 14
    for name, value in average.items():
        assert torch.equal(value, expected.module.state_dict()[name]), name


def test_warm_up_weighs_the_first_steps_by_hand(fit, tiny, train_plainly):
    network = tiny().network
    average = [p.detach().clone() for p in network.parameters()]
    decays = iter([0.1, 2 / 11, 3 / 12, 0.3, 0.3, 0.3, 0.3])

    def update():
        decay = next(decays)
        for a, p in zip(average, network.parameters(), strict=True):
            a.copy_(decay * a + (1 - decay) * p.detach())

    train_plainly(network, update, epochs=1)
    ema = EMA(decay=0.3)
    fit(tiny(), ema, max_epochs=1)
    for a, p in zip(average, ema.network.parameters(), strict=True):
        torch.testing.assert_close(p, a)


def test_the_average_is_validated_with_the_raw_weights(fit, tiny, val_batches):
    module, ema = tiny(), EMA(decay=0.9)
    fit(module, ema)
    for suffix, network in (("", module.network.eval()), ("_ema", ema.network)):
        with torch.no_grad():
            logits = [(network(images), labels) for images, labels in val_batches]
        loss = sum(F.cross_entropy(*pair) for pair in logits) / len(logits)
        accuracy = sum((x.argmax(1) == y).float().mean() for x, y in logits) / len(logits)
        assert module.validations[-1][f"val/loss{suffix}"] == loss.item()
        assert module.validations[-1][f"val/acc{suffix}"] == accuracy.item()
    assert module.validations[-1]["val/loss"] != module.validations[-1]["val/loss_ema"]


def test_weights_that_were_never_updated_are_not_validated(fit, tiny):
    # The first validation comes before the first optimizer step.
    module, ema = tiny(), EMA()
    fit(module, ema, max_epochs=1, accumulate_grad_batches=4, val_check_interval=3)
    assert ["val/acc_ema" in metrics for metrics in module.validations] == [False, True]


def test_outside_fit_only_the_raw_weights_are_validated(fit, tiny, val_batches):
    module, ema = tiny(), EMA()
    trainer = fit(module, ema)
    (metrics,) = trainer.validate(module, val_batches, verbose=False)
    assert metrics.keys() == {"val/loss", "val/acc"}


def test_training_is_the_same_without_it_even_when_validation_fails(fit, tiny):
    class Failing(tiny):
        def validation_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 1:
                raise RuntimeError("disk full")
            super().validation_step(batch, batch_idx)

    with_ema, without = Failing(), Failing()
    for module, callbacks in ((with_ema, [EMA(decay=0.9)]), (without, [])):
        with pytest.raises(RuntimeError, match="disk full"):
            fit(module, *callbacks)
    for name, value in without.network.state_dict().items():
        assert torch.equal(with_ema.network.state_dict()[name], value), name


def test_a_step_that_the_loss_scaler_skips_is_no_update(fit, tiny):
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    ema = EMA()
    trainer = fit(tiny(overflow_at=3), ema, max_epochs=1, plugins=half)
    assert trainer.global_step == 7
    assert ema.updates == 6


def test_a_network_compiled_in_place_in_channels_last_keeps_keys_and_format(fit, tiny):
    module, ema = tiny(), EMA(decay=0.9)
    module.network.to(memory_format=torch.channels_last).compile(backend="eager")
    fit(module, ema)
    average = ema.state_dict()["average"]
    assert average.keys() == tiny().network.state_dict().keys()
    assert average["0.weight"].is_contiguous(memory_format=torch.channels_last)


def test_a_network_without_buffers_is_averaged_too(fit, tiny):
    module, ema = tiny(), EMA()
    module.network[1] = torch.nn.Identity()
    fit(module, ema)
    assert ema.updates == 14


def test_it_averages_the_weights_after_lookahead(fit, tiny):
    module, ema = tiny(), EMA(decay=0.0, warmup=False)
    fit(module, Lookahead(k=7), ema, max_epochs=1)
    for average, p in zip(ema.network.parameters(), module.network.parameters(), strict=True):
        assert torch.equal(average, p)


def test_lookahead_after_it_is_rejected(fit, tiny):
    with pytest.raises(MisconfigurationException, match="Lookahead must come before EMA"):
        fit(tiny(), EMA(), Lookahead())


def test_after_fit_it_follows_no_more_steps(fit, tiny):
    ema = EMA()
    trainer = fit(tiny(), ema)
    trainer.optimizers[0].step()
    assert ema.updates == 14


def test_resuming_is_exact(resume_is_exact):
    resume_is_exact(lambda: EMA(decay=0.9))


def test_resuming_together_with_lookahead_is_exact(resume_is_exact):
    resume_is_exact(lambda: Lookahead(k=5), lambda: EMA(decay=0.9))


def test_the_average_can_be_taken_from_a_checkpoint(fit, tiny, tmp_path):
    ema = EMA(decay=0.9)
    fit(tiny(), ema, ModelCheckpoint(tmp_path, filename="end"))
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    network = tiny(seed=1).network
    network.load_state_dict(checkpoint["callbacks"]["EMA"]["average"])
    for p, q in zip(network.parameters(), ema.network.parameters(), strict=True):
        assert torch.equal(p, q)


def test_before_training_its_state_is_the_restored_one():
    ema = EMA()
    assert ema.state_dict() == {}
    ema.load_state_dict({"updates": 3, "average": {}})
    assert ema.state_dict() == {"updates": 3, "average": {}}


@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_validate_the_statistics_of_the_first(fit, tiny, processes):
    module, ema = tiny(), EMA()
    EMA().on_validation_start(SimpleNamespace(world_size=2), module)  # nothing to validate
    fit(module, ema)
    before = {name: buffer.clone() for name, buffer in ema.network.named_buffers()}
    strategy = SimpleNamespace(broadcast=lambda buffers: [x + 1 for x in buffers])
    ema.on_validation_start(SimpleNamespace(world_size=processes, strategy=strategy), module)
    for name, buffer in ema.network.named_buffers():
        assert torch.equal(buffer, before[name] + (processes == 2)), name


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_wrong_decay_is_named(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {decay}"):
        EMA(decay=decay)
