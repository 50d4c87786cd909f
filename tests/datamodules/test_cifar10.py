import hashlib
import logging
import os
import pickle
import shutil
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import CIFAR10
from torchvision.transforms.functional import pil_to_tensor

from datamodules import cifar10
from datamodules.augmentation import Augmentation
from datamodules.cifar10 import (
    CIFAR10DataModule,
    stratified_split,
)
from datamodules.datasets import PublicDataSet, open_data_set
from datamodules.facts import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD
from datamodules.mixing import Mixing
from datamodules.normalisation import normalise
from datamodules.synthetic import SYNTHETIC_CLASSES, synthetic_cifar10
from datamodules.tensor_loader import EvalLoader, TrainLoader

real_data = pytest.mark.real_data
# No server uses port 9: connecting fails at once, with or without a network.
UNREACHABLE = "http://127.0.0.1:9/cifar-10-python.tar.gz"
STRONG_AUGMENTATION = {
    "crop_mode": "reflect", "rotation": 15.0, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
    "hue": 0.1, "perspective": 0.2, "cutout": 8,
}  # fmt: skip


class Recorder(LightningModule):
    """Trains a linear layer, and remembers its batches."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(3 * 32 * 32, 10)
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        self.seen.append((self.current_epoch, batch_idx, images.clone(), targets.clone()))
        return F.cross_entropy(self.network(images.flatten(1)), targets)

    def validation_step(self, batch, batch_idx):
        self.network(batch[0].flatten(1))

    def test_step(self, batch, batch_idx):
        self.network(batch[0].flatten(1))

    def configure_optimizers(self):
        # OneCycleLR needs this number too: the loader is created before training starts.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.01)


def same(seen, expected):
    return len(seen) == len(expected) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for step, expected_step in zip(seen, expected, strict=True)
        for a, b in zip(step, expected_step, strict=True)
    )


def find_cifar10(root, download):
    open_data_set("cifar10", root, 32).find(download)


def load_cifar10(root, train):
    return open_data_set("cifar10", root, 32).load("train" if train else "test")


def images_of(loader):
    """The bytes of each image of a loader."""
    return {image.tobytes() for image in loader.images.numpy()}


@pytest.fixture
def fit(tmp_path):
    """Fit a fresh Recorder on a data module; options are the Trainer's."""

    def fit(data, *callbacks, ckpt_path=None, **options):
        module = Recorder()
        trainer = Trainer(
            accelerator="cpu",
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            **{
                "max_epochs": 1,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": bool(callbacks),
            }
            | options,
        )
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return module

    return fit


@pytest.fixture
def stand_in(monkeypatch):
    """Create data modules with 20 synthetic images per class: 180 to train on, 20 to validate."""
    monkeypatch.setattr(cifar10, "synthetic_cifar10", partial(synthetic_cifar10, per_class=20))

    def stand_in(**options):
        data = CIFAR10DataModule(**{"source": "synthetic", "batch_size": 30} | options)
        data.prepare_data()
        data.setup("fit")
        return data

    return stand_in


@pytest.fixture
def announced(caplog):
    """Captures the messages that Lightning prints."""
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def write_files(monkeypatch):
    """Write files of ten images in CIFAR-10's format, and make the code expect their md5 sums."""

    def write_files(root, dtype="uint8", labels=range(10)):
        folder = root / CIFAR10.base_folder
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)

        def write(name, content):
            (folder / name).write_bytes(pickle.dumps(content))
            return hashlib.md5((folder / name).read_bytes()).hexdigest()

        def write_batch(name):
            data = torch.randint(256, (10, 3072), generator=generator, dtype=torch.uint8)
            content = {"data": data.numpy().astype(dtype), "labels": list(labels)}
            return [name, write(name, content)]

        names = [f"data_batch_{i}" for i in range(1, 6)]
        monkeypatch.setattr(CIFAR10, "train_list", [write_batch(name) for name in names])
        monkeypatch.setattr(CIFAR10, "test_list", [write_batch("test_batch")])
        md5 = write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
        monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5})
        return folder

    return write_files


@pytest.fixture
def miniature(tmp_path, monkeypatch, no_proxy, write_files):
    """An empty root; a local server offers an archive of small files."""
    public = tmp_path / "public"
    folder = write_files(public)
    archive = public / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    handler = partial(SimpleHTTPRequestHandler, directory=public)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        monkeypatch.setattr(CIFAR10, "url", url)
        yield tmp_path / "root"
        server.shutdown()


@pytest.fixture(scope="module")
def real(cifar10_root):
    """A data module of the real CIFAR-10 with everything decoded."""
    data = CIFAR10DataModule(root=str(cifar10_root), download=False)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


@pytest.fixture(scope="module")
def real_train(cifar10_root):
    return load_cifar10(cifar10_root, train=True)


# CIFAR-10 itself


@real_data
@pytest.mark.parametrize(("train", "count"), [(True, 50_000), (False, 10_000)])
def test_loaded_images_equal_torchvisions(cifar10_root, train, count):
    images, labels = load_cifar10(cifar10_root, train)
    reference = CIFAR10(cifar10_root, train)
    assert images.shape == (count, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [count // 10] * 10
    assert labels.tolist() == reference.targets
    for index in range(0, count, 499):
        assert torch.equal(images[index], pil_to_tensor(reference[index][0]))


@real_data
def test_mean_and_std_belong_to_the_training_images(real_train):
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel, mean, std in zip(real_train[0].unbind(1), CIFAR10_MEAN, CIFAR10_STD, strict=True):
        share = channel.flatten().bincount(minlength=256) / channel.numel()
        measured = (share * values).sum()
        variance = (share * (values - measured) ** 2).sum()
        assert f"{measured:.5f} {variance.sqrt():.5f}" == f"{mean:.5f} {std:.5f}"


@real_data
def test_normalised_training_images_have_mean_0_and_std_1(real, real_train):
    loader = EvalLoader(*real_train, 1_000, real.mean, real.std)
    moments = torch.stack(
        [torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]) for x, _ in loader]
    )
    mean, square = moments.double().mean(0)
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    torch.testing.assert_close(mean, zero, rtol=0, atol=1e-4)
    torch.testing.assert_close(square - mean**2, one, rtol=0, atol=1e-4)


@real_data
def test_the_real_data_module_splits_cifar10_90_to_10(real, real_train, cifar10_root):
    train, val, test = real.train_dataloader(), real.val_dataloader(), real.test_dataloader()
    assert real.source == "cifar10"
    assert real.classes == CIFAR10_CLASSES == tuple(CIFAR10(cifar10_root).classes)
    assert train.labels.bincount().tolist() == [4_500] * 10
    assert val.labels.bincount().tolist() == [500] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert [len(train), len(val), len(test)] == [45_000 // 128, 20, 40]
    assert torch.equal(test.images, load_cifar10(cifar10_root, train=False)[0])
    images, labels = real_train
    train_index, val_index = stratified_split(labels, val_fraction=0.1, seed=0)
    for loader, index in ((train, train_index), (val, val_index)):
        assert torch.equal(loader.images, images[index])
        assert torch.equal(loader.labels, labels[index])


# The split


@pytest.fixture(scope="module")
def labels():
    """As many labels as CIFAR-10 has, in random order."""
    generator = torch.Generator().manual_seed(0)
    return torch.arange(10).repeat(5_000)[torch.randperm(50_000, generator=generator)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_is_stratified_disjoint_and_complete(labels, seed):
    train, val = stratified_split(labels, 0.1, seed)
    assert labels[train].bincount().tolist() == [4_500] * 10
    assert labels[val].bincount().tolist() == [500] * 10
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(50_000))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)


def test_the_split_is_fixed_by_its_seed(labels):
    (train, val), (again, val_again) = (stratified_split(labels, 0.1, seed=3) for _ in range(2))
    assert torch.equal(train, again)
    assert torch.equal(val, val_again)
    # Two seeds share only as many images as by chance: 500 of 5,000.
    _, other = stratified_split(labels, 0.1, seed=4)
    assert torch.isin(val, other).sum() < 700


@real_data
def test_the_default_split_is_the_same_on_every_machine(real_train):
    # If the split changed, all existing records would lose their meaning.
    _, val = stratified_split(real_train[1], 0.1, seed=0)
    assert hashlib.sha256(val.numpy().tobytes()).hexdigest()[:16] == "78a0abff90c839ab"


def test_without_a_validation_fraction_every_image_is_trained_on(labels):
    train, val = stratified_split(labels, 0.0, seed=0)
    assert torch.equal(train, torch.arange(50_000))
    assert len(val) == 0


def test_an_empty_validation_set_is_accepted_by_the_trainer(stand_in, fit):
    data = stand_in(val_fraction=0)
    assert len(data.train_dataloader().images) == 200
    assert len(data.val_dataloader()) == 0
    assert fit(data).trainer.global_step == 200 // 30


def test_the_split_follows_split_seed_and_not_seed(stand_in):
    held_out = images_of(stand_in().val_dataloader())
    assert len(held_out) == 20
    assert images_of(stand_in(seed=1).val_dataloader()) == held_out
    assert images_of(stand_in(split_seed=1).val_dataloader()) != held_out


def test_training_and_validation_images_are_the_training_set_and_share_nothing(stand_in):
    data = stand_in()
    train, val = images_of(data.train_dataloader()), images_of(data.val_dataloader())
    images, _ = synthetic_cifar10("train", per_class=20)
    assert train.isdisjoint(val)
    assert train | val == {image.tobytes() for image in images.numpy()}


# Finding, fetching and verifying


def test_absent_data_is_fetched_verified_and_loaded(miniature, announced):
    data = CIFAR10DataModule(root=str(miniature), batch_size=8)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert f"CIFAR-10 is not in {miniature}: downloading it" in announced.text
    assert data.source == "cifar10"
    assert len(data.train_dataloader().images) == 50
    assert len(data.test_dataloader().images) == 10


def test_existing_data_is_not_downloaded_again(miniature, monkeypatch, announced):
    find_cifar10(miniature, download=True)
    announced.clear()
    monkeypatch.setattr(CIFAR10, "url", UNREACHABLE)
    for archive in miniature.glob("*.tar.gz"):
        archive.unlink()
    find_cifar10(miniature, download=True)
    find_cifar10(miniature, download=False)
    assert announced.text == ""


def test_a_single_missing_file_is_fetched_or_named(miniature):
    find_cifar10(miniature, download=True)
    file = miniature / CIFAR10.base_folder / "data_batch_3"
    file.unlink()
    with pytest.raises(MisconfigurationException, match=r"\(data_batch_3 is missing\)"):
        find_cifar10(miniature, download=False)
    find_cifar10(miniature, download=True)
    assert file.exists()


def test_missing_data_gives_one_line_with_a_command(tmp_path):
    with pytest.raises(MisconfigurationException) as error:
        CIFAR10DataModule(root=str(tmp_path), download=False).prepare_data()
    message = str(error.value)
    assert "\n" not in message
    for part in (
        f"CIFAR-10 is incomplete in {tmp_path} (data_batch_1 is missing)",
        "downloading is switched off",
        "--data.root",
        "$CIFAR10_ROOT",
        "--data.source synthetic",
    ):
        assert part in message


def test_a_failed_download_gives_one_line_with_the_reason(tmp_path, monkeypatch, no_proxy):
    monkeypatch.setattr(CIFAR10, "url", UNREACHABLE)
    with pytest.raises(MisconfigurationException) as error:
        CIFAR10DataModule(root=str(tmp_path)).prepare_data()
    message = str(error.value)
    assert "\n" not in message
    assert "downloading it failed" in message
    assert "Connection refused" in message
    assert "--data.source synthetic" in message


@pytest.mark.parametrize("chunked", [False, True])
def test_an_interrupted_download_leaves_no_file_and_is_repeated(miniature, monkeypatch, chunked):
    whole = SimpleHTTPRequestHandler.do_GET

    def half(handler):
        content = Path(handler.translate_path(handler.path)).read_bytes()
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        length = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", len(content))
        handler.send_header(*map(str, length))
        handler.end_headers()
        size = b"%x\r\n" % len(content) if chunked else b""
        handler.wfile.write(size + content[: len(content) // 2])
        handler.close_connection = True

    monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", half)
    with pytest.raises(MisconfigurationException, match="downloading it failed: ") as error:
        find_cifar10(miniature, download=True)
    assert "\n" not in str(error.value)
    assert not [path for path in miniature.rglob("*") if path.is_file()]
    monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", whole)
    find_cifar10(miniature, download=True)


def test_a_damaged_archive_gives_the_reason(miniature, monkeypatch):
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(MisconfigurationException, match="downloading it failed: File not found or"):
        find_cifar10(miniature, download=True)


@real_data
@pytest.mark.parametrize("damaged", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_damaged_file_is_named(cifar10_root, tmp_path, damaged):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (cifar10_root / folder.name).iterdir():
        (folder / file.name).symlink_to(file)
    find_cifar10(tmp_path, download=False)
    (folder / damaged).unlink()
    shutil.copyfile(cifar10_root / folder.name / damaged, folder / damaged)
    with (folder / damaged).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(MisconfigurationException) as error:
        find_cifar10(tmp_path, download=True)
    assert str(error.value).startswith(f"{folder / damaged} is damaged")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"dtype": "float32"}, "the images in .* must be uint8, got torch.float32"),
        ({"labels": range(1, 11)}, "the labels in .* must be from 0 to 9, got 1 to 10"),
        ({"labels": range(-1, 9)}, "the labels in .* must be from 0 to 9, got -1 to 8"),
    ],
)
def test_images_of_a_wrong_dtype_and_labels_out_of_range_are_named(
    content, message, write_files, tmp_path
):
    write_files(tmp_path, **content)
    data = CIFAR10DataModule(root=str(tmp_path))
    data.prepare_data()
    with pytest.raises(MisconfigurationException, match=f"^{message}$"):
        data.setup("fit")


def test_source_auto_uses_synthetic_images_without_cifar10_and_says_so(tmp_path, announced):
    data = CIFAR10DataModule(root=str(tmp_path), source="auto", download=False)
    data.prepare_data()
    assert data.source == "synthetic"
    assert data.classes == SYNTHETIC_CLASSES
    assert f"CIFAR-10 is incomplete in {tmp_path}" in announced.text
    assert "Training on SYNTHETIC images" in announced.text


def test_source_auto_uses_cifar10_if_present(miniature, announced):
    data = CIFAR10DataModule(root=str(miniature), source="auto")
    data.prepare_data()
    assert data.source == "cifar10"
    assert data.classes == CIFAR10_CLASSES
    assert "SYNTHETIC" not in announced.text


def test_source_auto_puts_nothing_in_the_place_of_damaged_data(miniature):
    find_cifar10(miniature, download=True)
    damaged = miniature / CIFAR10.base_folder / "data_batch_3"
    damaged.write_bytes(b"damaged")
    data = CIFAR10DataModule(root=str(miniature), source="auto")
    with pytest.raises(MisconfigurationException, match=f"^{damaged} is damaged"):
        data.prepare_data()
    assert data.source is None


def test_source_synthetic_is_announced_and_looks_for_nothing(tmp_path, announced):
    data = CIFAR10DataModule(root=str(tmp_path), source="synthetic")
    data.prepare_data()
    assert data.source == "synthetic"
    assert "Training on SYNTHETIC images" in announced.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("root", "variable", "expected"),
    [
        (None, None, "data"),
        (None, "", "data"),
        (None, "/elsewhere", "/elsewhere"),
        ("/here", None, "/here"),
        ("/here", "/elsewhere", "/here"),
    ],
)
def test_root_wins_over_the_variable_and_the_variable_over_the_default(
    monkeypatch, root, variable, expected
):
    monkeypatch.delenv("CIFAR10_ROOT", raising=False)
    if variable is not None:
        monkeypatch.setenv("CIFAR10_ROOT", variable)
    assert CIFAR10DataModule(root=root).root == Path(expected)


# The test set


@pytest.mark.parametrize("source", ["synthetic", pytest.param("cifar10", marks=real_data)])
def test_the_test_set_is_not_decoded_before_fitting_has_ended(request, monkeypatch, fit, source):
    decoded = []

    whole = PublicDataSet.load

    def load(data_set, split):
        decoded.append(split)
        return whole(data_set, split)

    def synthesise(split, **size):
        decoded.append(split)
        return synthetic_cifar10(split, per_class=20, **size)

    monkeypatch.setattr(PublicDataSet, "load", load)
    monkeypatch.setattr(cifar10, "synthetic_cifar10", synthesise)
    root = str(request.getfixturevalue("cifar10_root")) if source == "cifar10" else None
    data = CIFAR10DataModule(root=root, source=source, batch_size=30)
    module = fit(data, max_epochs=2, limit_train_batches=2)
    assert len(module.seen) == 4
    assert decoded == ["train"]
    module.trainer.validate(module, data, verbose=False)
    assert decoded == ["train"]
    module.trainer.test(module, data, verbose=False)
    assert decoded == ["train", "test"]


# Batches


def test_every_flag_of_augmentation_and_mixing_arrives(stand_in):
    augmentation = {
        "crop_padding": 3, "crop_mode": "reflect", "flip": 0.4, "rotation": 10.0, "brightness": 0.1,
        "contrast": 0.2, "saturation": 0.3, "hue": 0.05, "perspective": 0.4, "perspective_p": 0.6,
        "cutout": 7,
    }  # fmt: skip
    mixing = {"mixup_alpha": 0.3, "mixup_p": 0.3, "cutmix_alpha": 0.7, "cutmix_p": 0.6}
    data = stand_in(seed=5, mixup_ramp=True, **augmentation, **mixing)
    loader = data.train_dataloader()
    expected = TrainLoader(
        loader.images,
        loader.labels,
        batch_size=30,
        seed=5,
        mean=torch.tensor(CIFAR10_MEAN),
        std=torch.tensor(CIFAR10_STD),
        augmentation=Augmentation(**augmentation, cutout_fill=CIFAR10_MEAN),
        mixing=Mixing(num_classes=10, **mixing, ramp=True),
        epochs=1,
    )
    assert loader.augmentation == expected.augmentation
    assert loader.mixing == expected.mixing
    assert same(list(loader), list(expected))


@pytest.mark.parametrize("mode", ["random", "alternating"])
def test_flips_alternate_on_request(mode, stand_in):
    data = stand_in(crop_padding=0, flip_mode=mode, batch_size=180)
    loader, originals = data.train_dataloader(), data.training_images(180)
    found = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        [(images, _)] = loader
        seen = {image.numpy().tobytes() for image in images}
        found.append([image.numpy().tobytes() in seen for image in originals])
    both = sum(a != b for a, b in zip(*found, strict=True))
    assert both == 180 if mode == "alternating" else 60 < both < 120


def test_training_images_are_the_first_normalised_and_not_augmented(stand_in):
    data = stand_in(**STRONG_AUGMENTATION)
    images = data.train_dataloader().images
    expected = normalise(images[:7], data.mean, data.std)
    assert torch.equal(data.training_images(7), expected)
    assert len(data.training_images(5_000)) == 180


def test_a_bf16_run_sees_the_batches_of_a_32_bit_run(stand_in, fit):
    data = stand_in(
        **STRONG_AUGMENTATION, mixup_alpha=0.3, mixup_p=0.5, cutmix_alpha=1, cutmix_p=0.5
    )
    full, half = (fit(data, precision=p, max_epochs=2) for p in ("32-true", "bf16-mixed"))
    assert len(full.seen) == 12
    assert full.seen[0][2].dtype == torch.float32
    assert same(full.seen, half.seen)
    # The two runs really differ.
    assert not torch.equal(full.network.weight, half.network.weight)


@pytest.mark.parametrize(("seed", "is_same"), [(0, True), (1, False)])
def test_runs_with_the_same_seed_get_the_same_batches(stand_in, fit, seed, is_same):
    runs = [fit(stand_in(seed=s, **STRONG_AUGMENTATION), max_epochs=2).seen for s in (0, seed)]
    assert same(*runs) == is_same


def test_every_epoch_of_a_run_has_different_batches(stand_in, fit):
    data = stand_in(crop_padding=0, flip=0.0)
    seen = fit(data, max_epochs=3).seen
    epochs = [
        [image.numpy().tobytes() for e, _, images, _ in seen if e == epoch for image in images]
        for epoch in range(3)
    ]
    assert [len(epoch) for epoch in epochs] == [180] * 3
    assert len(set(epochs[0])) == 180
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_ramp_of_mixup_follows_the_trainers_epochs(stand_in, fit):
    ramped = fit(stand_in(mixup_alpha=1.0, mixup_ramp=True), max_epochs=4).seen
    parts = [fit(stand_in(mixup_alpha=alpha), max_epochs=4).seen for alpha in (0.5, 0.75, 1.0)]
    for epoch, part in enumerate((0, 1, 2, 2)):
        steps = slice(6 * epoch, 6 * epoch + 6)
        assert same(ramped[steps], parts[part][steps])


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 100, "max_steps": 24},
        {"max_epochs": -1, "max_steps": 24},
        {"max_epochs": 100, "max_steps": 12, "accumulate_grad_batches": 2},
    ],
)
def test_the_ramp_of_mixup_follows_max_steps(stand_in, fit, limits):
    ramped = fit(stand_in(mixup_alpha=1.0, mixup_ramp=True), **limits).seen
    assert same(ramped, fit(stand_in(mixup_alpha=1.0, mixup_ramp=True), max_epochs=4).seen)


# Resuming


@pytest.mark.parametrize(
    ("saving", "options"),
    [
        ({"every_n_train_steps": 1}, {}),
        ({"every_n_train_steps": 1}, {"limit_train_batches": 3}),
        ({"every_n_train_steps": 1}, {"limit_val_batches": 0}),
        ({"save_on_train_epoch_end": False}, {"val_check_interval": 2}),
        ({"save_on_train_epoch_end": False}, {}),
        ({"save_on_train_epoch_end": True}, {}),
    ],
    ids=["step", "step of a part", "step unvalidated", "validation", "last validation", "epoch"],
)
def test_a_run_resumed_at_any_step_gets_the_remaining_batches(
    stand_in, fit, tmp_path, saving, options
):
    flags = {**STRONG_AUGMENTATION, "mixup_alpha": 0.3, "batch_size": 45}
    save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **saving)
    undisturbed = fit(stand_in(**flags), save, max_epochs=2, **options).seen
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints:
        steps = int(checkpoint.stem.removeprefix("step="))
        data = stand_in(**flags)
        resumed = fit(data, ckpt_path=checkpoint, max_epochs=2, **options).seen
        assert same(resumed, undisturbed[steps:]), checkpoint.name


def test_a_finished_run_continues_with_a_whole_epoch(stand_in, fit, tmp_path):
    undisturbed = fit(stand_in(), max_epochs=2).seen
    fit(stand_in(), max_epochs=1).trainer.save_checkpoint(tmp_path / "finished.ckpt")
    resumed = fit(stand_in(), ckpt_path=tmp_path / "finished.ckpt", max_epochs=2).seen
    assert same(resumed, undisturbed[6:])


def test_after_a_resumed_epoch_a_loader_returns_whole_epochs(stand_in, fit, tmp_path):
    save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    fit(stand_in(), save)
    data = stand_in()
    fit(data, ckpt_path=tmp_path / "step=4.ckpt")
    assert same(list(data.train_dataloader()), list(stand_in().train_dataloader()))


# Wrong use


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"eval_batch_size": -1}, "eval_batch_size must be 1 or more, got -1"),
        ({"val_fraction": -0.1}, r"val_fraction must be in \[0, 1\), got -0.1"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"val_fraction": float("nan")}, r"val_fraction must be in \[0, 1\), got nan"),
        (
            {"source": "imagenet"},
            "source must be one of cifar10, synthetic, auto, got 'imagenet'",
        ),
        (
            {"crop_mode": "reflect", "crop_padding": 32},
            "crop_padding must be less than 32 if crop_mode is reflect, got 32",
        ),
        ({"flip_mode": "never"}, "flip_mode must be random or alternating, got 'never'"),
        (
            {"flip": 0.4, "flip_mode": "alternating"},
            "flip must be 0.5 if flip_mode is alternating, got 0.4",
        ),
        ({"rotation": -1.0}, "rotation must be in .*, got -1.0"),
        ({"mixup_p": 2.0}, r"mixup_p must be in \[0, 1\], got 2.0"),
    ],
)
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        CIFAR10DataModule(**argument)


def test_a_batch_may_be_the_whole_training_set_and_no_larger(stand_in):
    assert len(stand_in(batch_size=180).train_dataloader()) == 1
    message = r"^data\.batch_size must be at most the 180 training images, got 181$"
    with pytest.raises(MisconfigurationException, match=message):
        stand_in(batch_size=181).train_dataloader()


def test_a_ramp_without_an_end_is_refused(stand_in, fit):
    with pytest.raises(
        MisconfigurationException, match=r"^trainer\.max_epochs or trainer\.max_steps must be "
    ):
        fit(stand_in(mixup_alpha=0.3, mixup_ramp=True), max_epochs=-1, max_time="00:00:00:05")
