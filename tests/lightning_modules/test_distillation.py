from math import log

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.classifier import ImageClassifier
from lightning_modules.distillation import Distillation, distillation_loss, soft_targets


def logits_of(seed, count=16):
    return 3 * torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))


def of_the_tutorial(student, teacher, temperature):
    """The loss in PyTorch's tutorial on knowledge distillation, without its weight."""
    targets = F.softmax(teacher / temperature, dim=-1)
    student = F.log_softmax(student / temperature, dim=-1)
    return (targets * (targets.log() - student)).sum() / len(student) * temperature**2


def test_value_and_gradient_equal_pytorchs_tutorial():
    ours, theirs = (logits_of(0).requires_grad_() for _ in range(2))
    loss = distillation_loss(ours, soft_targets([logits_of(1)], 2.0), 2.0)
    expected = of_the_tutorial(theirs, logits_of(1), 2.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_it_equals_a_computation_by_hand():
    # Temperature 2 turns the odds of 16 to 1 and 9 to 1 into 4 to 1 and 3 to 1.
    teacher, student = torch.tensor([[log(16), 0]]), torch.tensor([[log(9), 0]])
    expected = 4 * (0.8 * log(0.8 / 0.75) + 0.2 * log(0.2 / 0.25))
    targets = soft_targets([teacher], 2.0)
    assert distillation_loss(student, targets, 2.0).item() == pytest.approx(expected, abs=1e-6)
    by_class = distillation_loss(student, targets, 2.0, "mean").item()
    assert by_class == pytest.approx(expected / 2, abs=1e-6)


def test_several_teachers_teach_their_mean_probabilities():
    teachers = [logits_of(1), logits_of(2), logits_of(3)]
    expected = torch.stack([F.softmax(x / 3, dim=1) for x in teachers]).mean(0)
    torch.testing.assert_close(soft_targets(teachers, 3.0).exp(), expected)


def test_half_precision_is_computed_in_32_bits():
    student, teacher = logits_of(0).bfloat16(), logits_of(1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(student, soft_targets([teacher], 4.0), 4.0)
    expected = distillation_loss(student.float(), soft_targets([teacher.float()], 4.0), 4.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_the_teacher_does_not_change_and_is_not_saved():
    teacher = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10)
    )
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))
    student.learn_from(Distillation([teacher]))
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    first = student.training_step((images, labels), 0)
    assert torch.equal(first, student.training_step((images, labels), 0))  # no dropout
    first.backward()
    assert all(p.grad is None for p in teacher.parameters())
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert set(student.state_dict()) == {"network.1.weight", "network.1.bias"}
    assert sum(p.numel() for p in student.parameters()) == 1930


@pytest.mark.parametrize("views", [(), (3,)], ids=["one view", "AugMix"])
def test_the_loss_is_the_weighted_mean_of_both_losses(views):
    teacher, network = (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)) for _ in range(2))
    student = ImageClassifier(network, jsd_weight=12.0 if views else 0.0)
    images, labels = torch.randn(16, *views, 3, 8, 8), torch.arange(16) % 10
    alone = student.training_step((images, labels), 0)
    student.learn_from(Distillation([teacher], temperature=3.0, weight=0.25))
    flat = images.flatten(0, -4)
    taught = of_the_tutorial(network(flat), teacher(flat), 3.0)
    torch.testing.assert_close(
        student.training_step((images, labels), 0), 0.75 * alone + 0.25 * taught
    )


def test_with_sam_the_loss_at_the_perturbed_weights_has_a_teacher_too():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    student = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), sharpness="sam")
    student.learn_from(Distillation([teacher], temperature=3.0, weight=1.0))
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    loss = student.training_step((images, labels), 0)  # the weights stay perturbed
    taught = of_the_tutorial(student(images), teacher(images), 3.0)
    torch.testing.assert_close(loss, taught)


@pytest.mark.parametrize(
    ("settings", "temperature", "weight", "divisor"),
    [
        ({}, 4.0, 0.9, 1),
        ({"temperature": 0.5, "weight": 1.0}, 0.5, 1.0, 1),
        ({"weight": 0.0}, 4.0, 0.0, 1),
        ({"reduction": "mean"}, 4.0, 0.9, 10),  # divided by the number of classes
    ],
)
def test_the_settings_reach_the_loss(settings, temperature, weight, divisor):
    logits, teacher, other = logits_of(0), logits_of(1), torch.tensor(2.0)
    distillation = Distillation([nn.Flatten(0)], **settings)
    loss = distillation.loss(other, logits, soft_targets([teacher], distillation.temperature))
    taught = of_the_tutorial(logits, teacher, temperature) / divisor
    torch.testing.assert_close(loss, (1 - weight) * other + weight * taught)


def test_the_teacher_has_the_students_memory_format_device_and_type():
    teacher, network = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)) for _ in range(2)
    )
    student = ImageClassifier(network, channels_last=True)
    student.learn_from(Distillation([teacher]))
    assert teacher[0].weight.is_contiguous(memory_format=torch.channels_last)
    student.distillation.to(torch.device("meta"), torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in teacher.parameters())


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be above 0 and finite"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\]"),
    ],
)
def test_bad_settings_are_rejected(setting, reason):
    with pytest.raises(ValueError, match=reason):
        Distillation([], **setting)
