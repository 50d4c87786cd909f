import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datamodules.synthetic import SYNTHETIC_CLASSES, synthetic_cifar10


def hashes(images):
    return {hash(image.tobytes()) for image in images.numpy()}


def test_by_default_it_has_cifars_format_and_shares_no_image_between_splits():
    (train, train_labels), (test, test_labels) = map(synthetic_cifar10, ("train", "test"))
    assert train.shape == (50_000, 3, 32, 32)
    assert test.shape == (10_000, 3, 32, 32)
    assert train.dtype == test.dtype == torch.uint8
    assert train_labels.dtype == test_labels.dtype == torch.int64
    assert train_labels.bincount().tolist() == [5_000] * 10
    assert test_labels.bincount().tolist() == [1_000] * 10
    assert len(hashes(train) | hashes(test)) == 60_000


def test_there_is_a_name_for_each_class():
    assert len(set(SYNTHETIC_CLASSES)) == 10


def test_the_order_is_shuffled():
    _, labels = synthetic_cifar10("train", per_class=100)
    assert labels[:100].bincount(minlength=10).min() >= 2


def test_images_depend_on_split_and_seed_alone():
    state = torch.get_rng_state()
    images, labels = synthetic_cifar10("train", per_class=20)
    torch.rand(3)
    again, same_labels = synthetic_cifar10("train", per_class=20)
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)
    for other in (("test", 0, 20), ("train", 1, 20), ("test", 1, 20)):
        assert hashes(images).isdisjoint(hashes(synthetic_cifar10(*other)[0]))
    torch.set_rng_state(state)
    synthetic_cifar10("train", per_class=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_shows_something():
    images, _ = synthetic_cifar10("train", per_class=200)
    assert (images.float() / 255).std((2, 3)).amax(1).min() > 0.1


def test_horizontal_and_vertical_stripes_run_as_their_names_say():
    images, labels = synthetic_cifar10("train", per_class=100)
    across, down = images.float().diff(dim=3).abs(), images.float().diff(dim=2).abs()
    steeper_down = down.mean((1, 2, 3)) > across.mean((1, 2, 3))
    assert steeper_down[labels == SYNTHETIC_CLASSES.index("horizontal stripes")].all()
    assert not steeper_down[labels == SYNTHETIC_CLASSES.index("vertical stripes")].any()


def test_a_small_network_learns_it_and_generalises():
    images, labels = synthetic_cifar10("train", per_class=400)
    test_images, test_labels = synthetic_cifar10("test", per_class=100)
    images, test_images = images / 127.5 - 1, test_images / 127.5 - 1

    def block(width, out):
        conv = nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]
        network = nn.Sequential(*block(3, 24), *block(24, 48), *block(48, 48), *pool)
        optimizer = torch.optim.AdamW(network.parameters())
        epochs, steps = 4, len(images) // 64
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(64)[:steps]:
                loss = F.cross_entropy(network(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        predicted = network.eval()(test_images).argmax(1)
    for label, name in enumerate(SYNTHETIC_CLASSES):
        accuracy = (predicted == test_labels)[test_labels == label].float().mean().item()
        assert accuracy >= 0.85, f"{name}: {accuracy:.2f}"
    assert (predicted == test_labels).float().mean() >= 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be train or test, got 'val'"),
        ({"split": "train", "seed": -1}, "seed must be 0 or more, got -1"),
        ({"split": "test", "per_class": 0}, "per_class must be 1 or more, got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_cifar10(**arguments)
