"""Views, averages and temperatures, compared with results by hand or by torchvision."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from lightning_modules.prediction import (
    TTA,
    Ensemble,
    TemperatureScaled,
    fit_temperature,
    scale_brightness,
    see,
    shift,
)
from lightning_modules.views import FLIP, SAM_VIEWS, SHIFTS, SIX_VIEWS, STEPS

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.2, 0.3])
BOTH_AVERAGES = pytest.mark.parametrize("average", ["logits", "probabilities"])


def pixels(n: int = 6) -> Tensor:
    """Images in [0, 1]; some values are exactly 0 or 1."""
    values = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (values * 1.4 - 0.2).clamp(0, 1)


def images(n: int = 6) -> Tensor:
    return tv.normalize(pixels(n), MEAN.tolist(), STD.tolist())


def network(seed: int, scale: float = 3.0) -> nn.Module:
    """A network whose logits depend on the position of each pixel."""
    torch.manual_seed(seed)
    linear = nn.Linear(3 * 8 * 8, 10)
    linear.weight.data *= scale
    return nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)


class Counting(nn.Module):
    """A network that counts its images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return self.inner(images)


def softmax(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.double().numpy())
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("view", "factor"), [("brighter", 1.05), ("darker", 0.95)])
def test_brightness_is_changed_in_pixel_space(view: str, factor: float) -> None:
    by_torchvision = tv.normalize(
        tv.adjust_brightness(pixels(), factor), MEAN.tolist(), STD.tolist()
    )
    by_hand = ((pixels() * factor).clamp(0, 1) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    ours = see(images(), view, MEAN, STD)
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours, by_torchvision, rtol=0, atol=1e-5)
    # SAMResNet's code clamps normalised values: all values below the mean become the mean.
    assert ((images() * factor).clamp(0, 1) - by_hand).abs().max() > 1


@pytest.mark.parametrize(("factor", "edge"), [(1.05, 1.0), (0.95, 0.0)])
def test_brightness_stays_within_black_and_white(factor: float, edge: float) -> None:
    beyond = (torch.full((1, 3, 2, 2), 3 * edge - 1) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    seen = scale_brightness(beyond, factor, MEAN, STD) * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    torch.testing.assert_close(seen, torch.full_like(seen, edge))


def test_a_single_picture_on_any_device_can_be_shifted() -> None:
    assert torch.equal(shift(images()[0], 1, 2), shift(images(), 1, 2)[0])
    assert shift(images().to("meta"), 1, 2).is_meta


@pytest.mark.parametrize("view", ["up3", "flip+identiy", ""])
def test_an_unknown_view_is_rejected(view: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^view must be made of identity, .*, got '{re.escape(view)}'"
    ):
        see(images(), view)


@pytest.mark.parametrize("view", SHIFTS)
def test_a_shift_repeats_the_edge_and_never_wraps_around(view: str) -> None:
    direction, size = view[:-1], int(view[-1])
    # Repeat the edge on the side where pixels enter, then crop 8 pixels.
    before = {"down": (size, 0), "right": (0, size)}.get(direction, (0, 0))
    after = {"up": (size, 0), "left": (0, size)}.get(direction, (0, 0))
    padding = [(0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])]
    padded = np.pad(images().numpy(), padding, mode="edge")
    top, left = after
    expected = padded[:, :, top : top + 8, left : left + 8]
    np.testing.assert_array_equal(see(images(), view).numpy(), expected)


def test_the_steps_of_a_view_are_taken_in_their_order() -> None:
    x = images()
    assert torch.equal(see(x, "flip"), tv.horizontal_flip(x))
    flipped_last = tv.horizontal_flip(see(see(x, "up1"), "left1"))
    assert torch.equal(see(x, "up1+left1+flip"), flipped_last)
    assert not torch.equal(see(x, "flip+up1+left1"), flipped_last)


@pytest.mark.parametrize("view", STEPS)
def test_a_view_keeps_shape_and_type_and_does_not_change_its_input(view: str) -> None:
    x = images()
    seen = see(x, view, MEAN, STD)
    assert seen.shape == x.shape
    assert seen.dtype == torch.float32
    assert torch.equal(x, images())


@BOTH_AVERAGES
def test_a_network_invariant_to_flips_gains_nothing_from_them(average: Any) -> None:
    symmetric = nn.Sequential(nn.AdaptiveAvgPool2d((8, 1)), nn.Flatten(), nn.Linear(24, 10)).eval()
    augmented = TTA(symmetric, FLIP, average=average)(images())
    torch.testing.assert_close(augmented, symmetric(images()).log_softmax(1))


@BOTH_AVERAGES
def test_shifts_and_flips_do_not_change_a_picture_of_one_colour(average: Any) -> None:
    flat = images()[:, :, :1, :1].expand(-1, -1, 8, 8)
    augmented = TTA(network(0), SIX_VIEWS, average=average)(flat)
    torch.testing.assert_close(augmented, network(0)(flat).log_softmax(1))


def test_views_count_by_their_weights() -> None:
    views = {"identity": 3.0, "flip": 1.0}
    ours = TTA(network(0), views, average="probabilities")(images()).exp().numpy()
    x, flipped = (softmax(network(0)(v)) for v in (images(), images().flip(-1)))
    np.testing.assert_allclose(ours, 0.75 * x + 0.25 * flipped, atol=1e-6)


def test_six_views_equal_airbenchs() -> None:
    net = network(0)

    def mirrored(x: Tensor) -> Tensor:
        return 0.5 * net(x) + 0.5 * net(x.flip(-1))

    padded = F.pad(images(), [1] * 4, mode="replicate")
    moved = [mirrored(padded[:, :, i : i + 8, i : i + 8]) for i in (0, 2)]
    expected = 0.5 * mirrored(images()) + 0.25 * moved[0] + 0.25 * moved[1]
    torch.testing.assert_close(TTA(net, SIX_VIEWS)(images()), expected.log_softmax(1))


def test_samresnets_inference_is_its_views_shares_and_temperature() -> None:
    raw, ema = network(0), network(1)
    p = pixels()
    seen = {
        1.5: [p],
        1.0: [
            p.flip(-1),
            torch.cat([p[:, :, 1:], p[:, :, -1:]], dim=2),
            torch.cat([p[..., 1:], p[..., -1:]], dim=3),
            (p * 1.05).clamp(max=1),
            p * 0.95,
        ],
    }

    def by_hand(net: nn.Module) -> Tensor:
        total = torch.zeros(len(p), 10)
        for weight, views in seen.items():
            for view in views:
                total += weight * net(tv.normalize(view, MEAN.tolist(), STD.tolist())) / 1.2
        return total / 6.5

    ours = TemperatureScaled(
        Ensemble([TTA(net, SAM_VIEWS, MEAN, STD) for net in (raw, ema)], weights=[0.4, 0.6]), 1.2
    )
    expected = (0.4 * by_hand(raw) + 0.6 * by_hand(ema)).log_softmax(1)
    torch.testing.assert_close(ours(images()), expected, rtol=1e-4, atol=1e-4)


@BOTH_AVERAGES
def test_an_ensemble_of_one_is_its_network(average: Any) -> None:
    alone = Ensemble([network(0)], average=average)(images())
    torch.testing.assert_close(alone, network(0)(images()).log_softmax(1))


def test_an_ensemble_averages_the_named_probabilities() -> None:
    a, b = network(0), network(1)
    p, q = softmax(a(images())), softmax(b(images()))

    def ensemble(*arguments: Any, **options: Any) -> np.ndarray:
        return Ensemble([a, b], *arguments, **options)(images()).exp().numpy()

    np.testing.assert_allclose(
        ensemble([0.4, 0.6], average="probabilities"), 0.4 * p + 0.6 * q, atol=1e-6
    )
    np.testing.assert_allclose(ensemble(average="probabilities"), (p + q) / 2, atol=1e-6)
    geometric = p**0.4 * q**0.6
    geometric /= geometric.sum(axis=1, keepdims=True)
    # Weights need not add up to one.
    np.testing.assert_allclose(ensemble([4, 6], average="logits"), geometric, atol=1e-6)
    np.testing.assert_allclose(
        ensemble([4, 6]), softmax(0.4 * a(images()) + 0.6 * b(images())), atol=1e-6
    )


class LogProbabilities(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).log_softmax(1)


@pytest.mark.parametrize(
    "wrap",
    [
        TTA,
        TemperatureScaled,
        lambda net: TTA(net, SIX_VIEWS, threshold=0.6),
        lambda net: Ensemble([net, network(1)], average="probabilities"),
        lambda net: TemperatureScaled(Ensemble([TTA(net), TTA(network(1))])),
        lambda net: TTA(Ensemble([TemperatureScaled(net, 0.5), net]), average="probabilities"),
    ],
)
def test_modules_nest_around_logits_and_log_probabilities_alike(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    answer = wrap(network(0))(images())
    assert answer.shape == (6, 10)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(6))
    torch.testing.assert_close(wrap(LogProbabilities(network(0)))(images()), answer)


@pytest.mark.parametrize("wrap", [TTA, TemperatureScaled, lambda net: Ensemble([net])])
def test_a_network_in_half_precision_gives_log_probabilities_in_32_bits(wrap: Any) -> None:
    answer = wrap(network(0).bfloat16())(images().bfloat16())
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(6))


def test_the_state_of_a_tta_equals_its_networks() -> None:
    state = TTA(network(0), SAM_VIEWS, MEAN, STD).state_dict()
    assert set(state) == {f"network.{key}" for key in network(0).state_dict()}
    state = Ensemble([network(0)]).state_dict()
    assert set(state) == {f"networks.0.{key}" for key in network(0).state_dict()}


def test_a_threshold_keeps_sure_answers_and_needs_no_more_views_for_them() -> None:
    net = Counting(network(0))
    plain, augmented = TTA(net, {"identity": 1.0})(images(64)), TTA(net, SIX_VIEWS)(images(64))
    likeliest = plain.exp().topk(2).values
    sure = likeliest[:, 0] / likeliest.sum(1) >= 0.8
    assert 0 < sure.sum() < 64
    net.images = 0
    adaptive = TTA(net, SIX_VIEWS, threshold=0.8)(images(64))
    assert net.images == 64 + 5 * int((~sure).sum())
    torch.testing.assert_close(adaptive, torch.where(sure[:, None], plain, augmented))


def test_temperature_divides_logits_and_changes_no_class() -> None:
    logits = network(0)(images())
    answer = TemperatureScaled(network(0))(images())  # by default SAMResNet's 1.2
    np.testing.assert_allclose(answer.exp().numpy(), softmax(logits / 1.2), atol=1e-6)
    assert torch.equal(answer.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 1.2, 3.0])
def test_the_fitted_temperature_is_the_best_of_a_fine_grid(true_temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial((logits / true_temperature).softmax(1), 1, generator=generator)[:, 0]
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(true_temperature, rel=0.05)

    few, their_labels = logits[:500], labels[:500]

    def nll(temperature: float) -> float:
        scaled = few.double().numpy() / temperature
        log_sum = np.log(np.exp(scaled).sum(axis=1))
        return float((log_sum - scaled[np.arange(500), their_labels.numpy()]).mean())

    fitted = fit_temperature(few, their_labels)
    grid = np.geomspace(0.2, 5, 401)  # in steps of 0.8%
    best = grid[np.argmin([nll(t) for t in grid])]
    assert fitted == pytest.approx(best, rel=0.01)
    assert nll(fitted) <= nll(best)
    exact = minimize_scalar(nll, bounds=(0.2, 5), method="bounded", options={"xatol": 1e-10})
    assert fitted == pytest.approx(exact.x, rel=1e-4)


def test_without_a_best_temperature_it_stays_within_its_limits() -> None:
    labels = torch.arange(10)
    always_right = 5 * F.one_hot(labels, 10).float()
    assert 0.05 <= fit_temperature(always_right, labels) < 0.5
    assert fit_temperature(always_right, labels.roll(1)) == 20
    assert fit_temperature(torch.zeros(10, 10), labels) == 1


def test_a_temperature_can_be_fitted_to_inference_tensors() -> None:
    labels = torch.arange(60) % 10
    logits = network(0)(images(60))
    with torch.inference_mode():
        assert fit_temperature(network(0)(images(60)), labels) == fit_temperature(logits, labels)
        assert math.isfinite(fit_temperature(network(0)(images(60)).double(), labels.clone()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TTA(network(0), {"upside-down": 1.0}), "views must be made of identity, flip"),
        (lambda: TTA(network(0), {"flip+up3": 1.0}), "joined by +, got 'up3'"),
        (lambda: TTA(network(0), {"flip": 0.0}), "views must weigh more than 0 each, got [0.0]"),
        (lambda: TTA(network(0), {}), "views must weigh more than 0 each, got []"),
        (lambda: TTA(network(0), SAM_VIEWS), "mean and std must be given"),
        (lambda: TTA(network(0), SAM_VIEWS, MEAN), "mean and std must be given"),
        (lambda: TTA(network(0), SAM_VIEWS, std=STD), "mean and std must be given"),
        (lambda: TTA(network(0), threshold=1.0), "between 0.5 and 1, got 1.0"),
        (lambda: TTA(network(0), threshold=0.5), "between 0.5 and 1, got 0.5"),
        (lambda: TTA(network(0), average="votes"), "average must be 'logits' or"),
        (lambda: Ensemble([]), "networks must be one or more, got none"),
        (lambda: Ensemble([network(0)], [0.4, 0.6]), "weights must be 1 numbers, one a network"),
        (lambda: Ensemble([network(0)], [math.nan]), "weights must weigh more than 0 each"),
        (lambda: Ensemble([network(0)], average="votes"), "average must be 'logits' or"),
        (lambda: TemperatureScaled(network(0), 0.0), "temperature must be above 0, got 0.0"),
        (lambda: TemperatureScaled(network(0), math.inf), "temperature must be above 0, got inf"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
