import csv
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from experiments.console import UserError
from experiments.inference.array_pickles import unpickle_arrays
from experiments.inference.pictures import read_picture
from experiments.inference.unlabelled import (
    probabilities_csv,
    read_test_set,
    read_unlabelled,
    submission_csv,
)

PIXELS = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)

# What Python 2 wrote, opcode by opcode, as in the official batches: byte strings without a prefix
# for text, and the names of NumPy 1.
PYTHON_2 = (
    b"\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
    b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
    + PIXELS[0].tobytes()
    + b"tbs."
)


class Payload:
    """What runs a command in whoever unpickles it the ordinary way."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def write(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize("key", ["data", b"data"])
def test_a_pickle_of_any_protocol_and_numpy_gives_its_images(
    tmp_path: Path, protocol: int, numpy_1: bool, key: str | bytes
) -> None:
    flat = PIXELS.transpose(0, 3, 1, 2).reshape(5, 3072)
    for array in (PIXELS, flat, np.asfortranarray(flat)):
        content = pickle.dumps({key: array, b"batch_label": b"testing", "labels": [1]}, protocol)
        if numpy_1:  # of the same length, so that the pickle's own counts stay true
            assert b"numpy._core." in content
            content = content.replace(b"numpy._core.m", b"numpy.core.m")
            content = content.replace(b"numpy._core.n", b"numpy.core.n")
            content = content.replace(b"\x8c\x16numpy.core.m", b"\x8c\x15numpy.core.m")
            content = content.replace(b"\x8c\x13numpy.core.n", b"\x8c\x12numpy.core.n")
            if protocol >= 4:  # frames state their length
                length = int.from_bytes(content[3:11], "little") - 1
                content = content[:3] + length.to_bytes(8, "little") + content[11:]
        (tmp_path / "set.pkl").write_bytes(content)
        images, ids = read_test_set(tmp_path / "set.pkl")
        assert torch.equal(images, CHANNELS_FIRST)
        assert ids == ["0", "1", "2", "3", "4"]


def test_a_pickle_of_python_2_gives_its_images(tmp_path: Path) -> None:
    (tmp_path / "set.pkl").write_bytes(PYTHON_2)
    images, _ = read_test_set(tmp_path / "set.pkl")
    assert torch.equal(images, torch.from_numpy(PIXELS[0].reshape(1, 3, 32, 32)))


@pytest.mark.real_data
def test_an_official_batch_is_read_as_torchvision_reads_it(cifar10_root: Path) -> None:
    images, _ = read_test_set(cifar10_root / "cifar-10-batches-py" / "test_batch")
    expected = torch.from_numpy(CIFAR10(cifar10_root, train=False).data).permute(0, 3, 1, 2)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("ids", [[7, 3, 9, 1, 0], np.array([7, 3, 9, 1, 0]), [b"7", *"3910"]])
def test_the_ids_of_a_test_set_are_its_own(tmp_path: Path, ids: object) -> None:
    _, found = read_test_set(write(tmp_path / "set.pkl", {b"data": PIXELS, b"ids": ids}))
    assert found == ["7", "3", "9", "1", "0"]


def test_a_key_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    images, _ = read_test_set(write(tmp_path / "set.pkl", {b"\xff": 1, b"data": PIXELS}))
    assert torch.equal(images, CHANNELS_FIRST)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_hostile_pickle_runs(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    hostile = write(tmp_path / "set.pkl", {"data": Payload(os.mkdir, str(trace))}, protocol)
    with pytest.raises(UserError, match=r"it asks for \w+\.mkdir"):
        unpickle_arrays(hostile)
    assert not trace.exists()
    # The same bytes, read without restriction, do act.
    with hostile.open("rb") as file:
        pickle.load(file)
    assert trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"c__builtin__\neval\n(V__import__('os').mkdir('trace')\ntR.",
        b"cnumpy\nload\n(Vset.npy\ntR.",
        b"cnumpy\ndtype\n(VO\ntR}(Va\nI1\nub.",
        b"(ios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"Pid\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n}(V__setstate__\nI1\nub.",
        b"c_codecs\nencode\nN}(V__new__\nI1\nu\x86b.",
    ],
    ids=["eval", "load", "state", "inst", "extension", "persistent", "class", "attribute"],
)
def test_every_road_to_code_is_closed(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"^set\.pkl is neither .+ containers: \S"):
        unpickle_arrays(Path("set.pkl"))
    assert [path.name for path in tmp_path.iterdir()] == ["set.pkl"]
    # Nor has the file changed how the next one is read.
    assert len(read_test_set(write(Path("good.pkl"), {"data": PIXELS}, 2))[0]) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": PIXELS.reshape(5, 3072)[:, :3000]}, r"uint8 \(5, 3000\), not uint8 \(N, 3072\)"),
        ({"data": PIXELS.astype(np.float32)}, r"holds float32 \(5, 32, 32, 3\)"),
        ({"data": PIXELS[:0]}, r"holds uint8 \(0, 32, 32, 3\)"),
        ({"data": PIXELS[0]}, r"holds uint8 \(32, 32, 3\)"),
        ({"data": np.array([None])}, "it has an array of type 'O8'"),
        ({"images": PIXELS}, r"no array under the key data; its keys are \['images'\]"),
        ({"data": PIXELS, "ids": [1, 2]}, "has 5 images, but 2 ids"),
        ({"data": PIXELS, "ids": None}, "has ids that are not a list, but None"),
        ({"data": PIXELS, "ids": 7}, "has ids that are not a list, but 7"),
        ({"data": PIXELS, "ids": "01234"}, "has ids that are not a list, but '01234'"),
        ({"data": PIXELS, "ids": np.array(7)}, "has ids that are not a list"),
        ({"data": PIXELS, "ids": [b"\xff", 1, 2, 3, 4]}, "has an id that is not UTF-8: .*0xff"),
        ({"data": np.array(7, np.uint8)}, r"holds uint8 \(\), not uint8 \(N, 3072\)"),
        ({b"\xff": PIXELS}, r"no array under the key data; its keys are \['\ufffd'\]"),
        ([PIXELS], "holds a list, not a dictionary"),
    ],
)
def test_a_pickle_of_something_else_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_test_set(write(tmp_path / "set.pkl", content))


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "set.pkl", {"data": PIXELS})
    whole.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"set\.pkl is neither a picture nor"):
        read_unlabelled([whole])


def test_pictures_of_32_pixels_are_taken_as_they_are(tmp_path: Path) -> None:
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._0.png").write_text("what some systems put beside a picture")
    found = read_unlabelled([tmp_path])
    assert torch.equal(found.images, CHANNELS_FIRST)
    assert found.ids == [str(tmp_path / f"{i}.png") for i in range(5)]
    assert found.resized == 0


def test_inputs_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    Image.fromarray(PIXELS[1]).save(tmp_path / "folder" / "b.png")
    Image.fromarray(PIXELS[2]).save(tmp_path / "folder" / "deep" / "a.PNG")
    picture = tmp_path / "z.bmp"
    Image.fromarray(PIXELS[0]).save(picture)
    test_set = write(tmp_path / "set.pkl", {"data": PIXELS[3:]})
    found = read_unlabelled([picture, tmp_path / "folder", test_set])
    assert torch.equal(found.images, CHANNELS_FIRST)
    names = [Path(name).name for name in found.ids]
    assert names == ["z.bmp", "b.png", "a.PNG", "0", "1"]


def test_of_a_wide_picture_the_square_in_the_middle_counts(tmp_path: Path) -> None:
    wide = np.zeros((64, 100, 3), np.uint8)
    wide[:, 18:82] = (10, 200, 90)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_unlabelled([tmp_path / "wide.png"])
    assert found.resized == 1
    # At its rim the filter reaches over the edge.
    middle = found.images[0, :, 3:-3, 3:-3]
    assert middle.flatten(1).unique(dim=1).T.tolist() == [[10, 200, 90]]


def test_checks_as_fine_as_the_picture_become_grey(tmp_path: Path) -> None:
    checks = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "checks.png")
    images = read_unlabelled([tmp_path / "checks.png"]).images
    assert images.min() >= 126
    assert images.max() <= 129


def test_what_is_transparent_becomes_white_and_grey_becomes_three_channels(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (32, 32), 7).save(tmp_path / "grey.png")
    images = read_unlabelled([tmp_path]).images
    assert images[0].unique().tolist() == [255]
    assert images[1].unique().tolist() == [7]


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter to see it upright
    Image.fromarray(PIXELS[0]).save(tmp_path / "turned.png", exif=exif)
    found = read_unlabelled([tmp_path / "turned.png"])
    assert torch.equal(found.images[0], CHANNELS_FIRST[0].rot90(-1, (1, 2)))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_picture_of_more_than_8_bits_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "deep.tiff"
    Image.new(mode, (32, 32)).save(path)
    with pytest.raises(UserError, match=rf"deep.tiff has greys of .* {mode}\)$"):
        read_picture(path)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        read_unlabelled([tmp_path])
    with pytest.raises(UserError, match=r"none\.png is missing"):
        read_unlabelled([tmp_path / "none.png"])
    with pytest.raises(UserError, match=r"none\.pkl does not exist"):
        read_unlabelled([tmp_path / "none.pkl"])
    picture = tmp_path / "cut.png"
    Image.fromarray(PIXELS[0]).save(picture)
    with pytest.raises(UserError, match=r"2 images have the id .+cut\.png"):
        read_unlabelled([picture, tmp_path])
    picture.write_bytes(picture.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"cut\.png is not a whole picture"):
        read_unlabelled([picture])


def test_a_submission_is_what_kaggle_takes() -> None:
    assert submission_csv(["0", "1", "2"], [3, 9, 0]) == "ID,Labels\n0,3\n1,9\n2,0\n"


def test_probabilities_stand_beside_the_likeliest_name() -> None:
    text = probabilities_csv(["a,b.png"], torch.tensor([[0.25, 0.75]]), ["cat", "dog"])
    assert list(csv.reader(io.StringIO(text))) == [
        ["ID", "class", "cat", "dog"],
        ["a,b.png", "dog", "0.250000", "0.750000"],
    ]
