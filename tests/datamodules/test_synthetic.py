import torch

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


def test_the_order_is_shuffled():
    _, labels = synthetic_cifar10("train", per_class=100)
    assert labels[:100].bincount(minlength=10).min() >= 2


def test_images_depend_on_the_split_alone():
    state = torch.get_rng_state()
    images, labels = synthetic_cifar10("train", per_class=20)
    torch.rand(3)
    again, same_labels = synthetic_cifar10("train", per_class=20)
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)
    assert hashes(images).isdisjoint(hashes(synthetic_cifar10("test", per_class=20)[0]))
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
