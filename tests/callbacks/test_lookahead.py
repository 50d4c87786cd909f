import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from callbacks import Lookahead
from callbacks.lookahead import cubic_share, lookahead_sync


def test_a_synchronisation_moves_both_weights_to_the_same_point_between_them():
    slow, fast = [torch.tensor([1.0, 2.0])], [torch.tensor([5.0, -2.0])]
    lookahead_sync(fast, slow, alpha=0.25)
    assert slow[0].tolist() == fast[0].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.5), (3, 0.8), (5, 0.5), (50, 0.5)])
def test_equals_a_plain_loop_bit_for_bit(fit, tiny, train_plainly, k, alpha, accumulate):
    expected = tiny().network
    slow = [p.detach().clone() for p in expected.parameters()]
    steps = 0

    def synchronise():
        nonlocal steps
        steps += 1
        if steps % k == 0:
            with torch.no_grad():
                for s, p in zip(slow, expected.parameters(), strict=True):
                    s.lerp_(p, alpha)
                    p.copy_(s)

    plain_optimizer = train_plainly(expected, synchronise, accumulate=accumulate)
    module = tiny()
    lookahead = Lookahead(k, alpha)
    trainer = fit(module, lookahead, accumulate_grad_batches=accumulate)

    assert lookahead.steps == steps == trainer.global_step
    for name, value in expected.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], value), name
    for p, q in zip(module.network.parameters(), expected.parameters(), strict=True):
        momentum = trainer.optimizers[0].state[p]["momentum_buffer"]
        assert torch.equal(momentum, plain_optimizer.state[q]["momentum_buffer"])


def test_its_defaults_are_the_papers_and_a_share_of_1_changes_nothing(fit, tiny):
    weights = []
    for callbacks in ([Lookahead()], [Lookahead(5, 0.5)], [Lookahead(2, 1.0)], []):
        module = tiny()
        fit(module, *callbacks)
        weights.append(module.network[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[0], weights[3])


def test_before_training_its_state_is_the_restored_one():
    lookahead = Lookahead()
    assert lookahead.state_dict() == {}
    lookahead.load_state_dict({"steps": 3, "slow": {}})
    assert lookahead.state_dict() == {"steps": 3, "slow": {}}


def test_slow_weights_start_at_the_initial_weights(fit, tiny):
    initial, unbiased, module = tiny().network, tiny(), tiny()
    fit(unbiased, max_epochs=1)
    fit(module, Lookahead(k=7, alpha=0.5), max_epochs=1)
    for start, fast, p in zip(
        initial.parameters(),
        unbiased.network.parameters(),
        module.network.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(p, (start + fast) / 2)


def test_frozen_parameters_are_left_alone(fit, tiny):
    module = tiny()
    frozen = module.network[0].weight.requires_grad_(False)
    before = frozen.clone()
    lookahead = Lookahead(k=2)
    fit(module, lookahead)
    assert torch.equal(frozen, before)
    assert "0.weight" not in lookahead.state_dict()["slow"]


def test_a_restored_parameter_that_is_now_frozen_keeps_its_slow_weights(fit, tiny):
    module, lookahead = tiny(), Lookahead()
    trainer = fit(module, lookahead)
    state = lookahead.state_dict()
    module.network[0].bias.requires_grad_(False)
    lookahead.load_state_dict(state)
    lookahead.on_train_start(trainer, module)
    assert lookahead.state_dict()["slow"].keys() == state["slow"].keys()


def test_a_step_that_the_loss_scaler_skips_does_not_count(fit, tiny):
    half = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    lookahead = Lookahead()
    trainer = fit(tiny(overflow_at=3), lookahead, max_epochs=1, plugins=half)
    assert trainer.global_step == 7
    assert lookahead.steps == 6


def test_after_fit_it_acts_on_no_more_steps(fit, tiny):
    lookahead = Lookahead()
    trainer = fit(tiny(), lookahead)
    trainer.optimizers[0].step()
    assert lookahead.steps == 14


def test_resuming_inside_a_cycle_is_exact(resume_is_exact):
    resume_is_exact(lambda: Lookahead(k=5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "k must be 1 or more, got 0"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\], got 0.0"),
        ({"alpha": 1.5}, r"alpha must be in \(0, 1\], got 1.5"),
        ({"schedule": "linear"}, "schedule must be 'constant' or 'cubic', got 'linear'"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Lookahead(**wrong)


def test_the_cubic_share_falls_from_one_to_alpha():
    assert cubic_share(0.0, end=0.226) == 1
    assert cubic_share(0.5, end=0.226) == pytest.approx(1 - 0.774 / 8)
    assert cubic_share(1.0, end=0.226) == pytest.approx(0.226)


def test_with_the_cubic_schedule_equals_a_plain_loop_bit_for_bit(fit, tiny, train_plainly):
    expected = tiny().network
    slow = [p.detach().clone() for p in expected.parameters()]
    steps = 0

    def synchronise():
        nonlocal steps
        steps += 1
        if steps % 5 == 0:
            with torch.no_grad():
                for s, p in zip(slow, expected.parameters(), strict=True):
                    s.lerp_(p, cubic_share(steps / 14, 0.3))
                    p.copy_(s)

    train_plainly(expected, synchronise)
    module = tiny()
    fit(module, Lookahead(5, 0.3, schedule="cubic"))
    for name, value in expected.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], value), name


def test_resuming_within_the_cubic_schedule_is_exact(resume_is_exact):
    resume_is_exact(lambda: Lookahead(k=5, alpha=0.3, schedule="cubic"))
