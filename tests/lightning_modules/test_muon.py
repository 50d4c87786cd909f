import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules import muon
from lightning_modules.muon import MuonSGD, orthogonalise
from lightning_modules.optimizers import filters, make_optimizer, set_apart


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def polar_factor(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (3, 8, 40)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrix = normal(*shape)
    result = orthogonalise(matrix)
    assert result.shape == matrix.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.65
    assert values.max() < 1.25
    # The result has the singular vectors of the argument: in their bases it is diagonal.
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    within = u.mT @ result @ vh.mT
    assert (within - torch.diag_embed(within.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-3
    cosine = F.cosine_similarity(result.flatten(), polar_factor(matrix).flatten(), dim=0)
    assert cosine > 0.98


def test_the_length_of_a_matrix_does_not_matter_and_zero_stays_zero() -> None:
    matrix = normal(8, 20)
    for factor in (1e3, 1e-3):
        torch.testing.assert_close(orthogonalise(factor * matrix), orthogonalise(matrix))
    assert not orthogonalise(torch.zeros(4, 6)).any()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[float]:
    losses = []
    images, labels = normal(16, 3, 8, 8), torch.arange(16) % 10
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_without_orthogonal_groups_it_is_torchs_sgd(nesterov: bool, weight_decay: float) -> None:
    ours, theirs = network(), network()
    settings = {"lr": 0.1, "momentum": 0.8, "nesterov": nesterov, "weight_decay": weight_decay}
    train(ours, MuonSGD(ours.parameters(), **settings))
    train(theirs, torch.optim.SGD(theirs.parameters(), **settings))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_by_default_it_is_torchs_sgd_with_momentum() -> None:
    ours, theirs = network(), network()
    train(ours, MuonSGD(ours.parameters(), lr=0.1))
    train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_a_group_without_gradients_is_left_out() -> None:
    frozen, p = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = MuonSGD([{"params": [frozen]}, {"params": [p]}], lr=0.1)
    assert optimizer.step() is None
    assert frozen.tolist() == [1, 1]
    assert p.tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize(
    "settings", [{"weight_decay": 0.5}, {"steps": 5}, {"steps": 1}, {"steps": 2}]
)
def test_filters_do_not_decay_and_use_their_groups_rate(settings: dict[str, float]) -> None:
    p = nn.Parameter(normal(4, 6))
    p.grad = torch.diag_embed(torch.tensor([1.0, 0.5, 0.1, 0.01])) @ normal(4, 6).clone()
    start, gradient = p.detach() / p.detach().norm() * 2, p.grad.clone()
    MuonSGD([{"params": [p], "orthogonal": True} | settings], lr=0.5).step()
    expected = orthogonalise(gradient.bfloat16(), int(settings.get("steps", 5))).float()
    torch.testing.assert_close((start - p.detach()) / 0.5, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 4, 2, 3), (4, 3, 5, 2)])
def test_the_layout_of_a_filters_memory_does_not_matter(shape: tuple[int, ...]) -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(normal(*shape).to(memory_format=layout))
        p.grad = (normal(*shape) ** 3).to(memory_format=layout)
        MuonSGD([{"params": [p], "orthogonal": True}], lr=0.5).step()
        results.append(p.detach())
    assert (results[0] - results[1]).norm() < 0.01 * results[0].norm()  # the precision of bf16


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_filter_moves_by_an_orthogonal_matrix_from_its_norm(size: float) -> None:
    p = nn.Parameter(size * normal(6, 2, 3, 3))
    p.grad = normal(6, 2, 3, 3) * 3
    start = p.detach() / p.detach().norm() * 6**0.5
    MuonSGD([{"params": [p], "orthogonal": True}], lr=0.5, momentum=0.6, nesterov=True).step()
    moved = (start - p.detach()).flatten(1) / 0.5
    expected = orthogonalise(p.grad.flatten(1))
    # The optimizer computes in bf16.
    assert (moved - expected).norm() < 0.05 * expected.norm()


def test_fewer_steps_leave_small_singular_values_smaller() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.01]))
    small = [torch.linalg.svdvals(orthogonalise(matrix, steps))[-1] for steps in (1, 3, 5)]
    assert small[0] < small[1] < small[2]
    assert small[0] == pytest.approx(0.01 * 3.4445, rel=0.01)


def test_a_tall_filter_takes_longer_steps() -> None:
    p = nn.Parameter(normal(36, 4, 1, 1))
    p.grad = normal(36, 4, 1, 1)
    start = p.detach() / p.detach().norm() * 6
    MuonSGD([{"params": [p], "orthogonal": True}], lr=0.5, momentum=0.0).step()
    values = torch.linalg.svdvals((start - p.detach()).flatten(1))
    assert values.min() > 0.65 * 0.5 * 3  # 3 = sqrt(36 / 4)
    assert values.max() < 1.25 * 0.5 * 3


HPARAMS = {
    "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "decay_norm_bias": True,
    "bias_lr_factor": 1.0, "optimizer": "muon", "muon_lr": 0.2, "muon_momentum": 0.6,
    "muon_steps": 3, "fused": False,
}  # fmt: skip


def test_filters_use_muons_steps_and_all_else_sgds() -> None:
    model = network()
    optimizer = make_optimizer(model, HPARAMS)
    others, muon = optimizer.param_groups
    assert (muon["lr"], muon["momentum"], muon["steps"], muon["orthogonal"]) == (0.2, 0.6, 3, True)
    assert (others["lr"], others["momentum"], others["orthogonal"]) == (0.1, 0.9, False)
    assert muon["params"] == [model[0].weight, model[3].weight]
    assert len(others["params"]) == len(list(model.parameters())) - 2


def test_it_learns() -> None:
    model = network()
    losses = train(model, make_optimizer(model, HPARAMS | {"lr": 0.01, "muon_lr": 0.1}), steps=20)
    assert losses[-1] < losses[0] / 4


def test_schedules_scale_the_rates_of_all_groups() -> None:
    optimizer = make_optimizer(network(), HPARAMS)
    LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_a_restored_optimizer_continues_bit_for_bit() -> None:
    model = network()
    optimizer = make_optimizer(model, HPARAMS)
    train(model, optimizer)
    copied = copy.deepcopy(model)
    restored = make_optimizer(copied, HPARAMS)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer) == train(copied, restored)


def test_set_apart_moves_parameters_and_keeps_their_groups_settings() -> None:
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    groups = [{"params": [a, b], "weight_decay": 0.1}, {"params": [c], "weight_decay": 0.0}]
    assert set_apart(groups, [b, c], lr=3.0) == [
        {"params": [a], "weight_decay": 0.1},
        {"params": [b], "weight_decay": 0.1, "lr": 3.0},
        {"params": [c], "weight_decay": 0.0, "lr": 3.0},
    ]


def test_a_step_through_a_closure_returns_its_loss() -> None:
    p = nn.Parameter(torch.ones(2, 2))

    def closure() -> Tensor:
        loss = p.square().sum()
        loss.backward()
        return loss

    assert MuonSGD([p], lr=0.1).step(closure) == 4
    assert filters(nn.Sequential(nn.Linear(2, 2))) == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_filters_of_one_shape_step_in_a_batch_as_they_do_alone(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4, 3, 3), (8, 2, 3, 3), (6, 4, 3, 3), (6, 4, 3, 3)]
    start = [torch.randn(s, generator=generator).to(memory_format=layout) for s in shapes]
    gradients = [torch.randn(s, generator=generator).to(memory_format=layout) for s in shapes]

    def filters_after_steps() -> list[Tensor]:
        parameters = [nn.Parameter(x.clone()) for x in start]
        optimizer = MuonSGD([{"params": parameters, "orthogonal": True}], lr=0.1, nesterov=True)
        for _ in range(3):
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
        return parameters

    alone = filters_after_steps()
    together = [[0, 2, 3], [1]]  # as on a GPU
    monkeypatch.setattr(muon, "_batches", lambda parameters: together)
    for p, q in zip(filters_after_steps(), alone, strict=True):
        assert p.is_contiguous(memory_format=layout)
        # Products in bf16 have a relative precision of 0.4%.
        assert (p - q).norm() < 0.004 * q.norm()
