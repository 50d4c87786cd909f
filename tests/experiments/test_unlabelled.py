import csv
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from datamodules.pictures import PictureError, read_picture
from experiments import console
from experiments.console import UserError
from experiments.inference.array_pickles import unpickle_arrays
from experiments.inference.unlabelled import (
    probabilities_csv,
    read_test_set,
    read_unlabelled,
    submission_csv,
)

ROOT = Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)

# A pickle of Python 2, opcode by opcode, as in the official batches: text is byte strings without
# a prefix, and names are from NumPy 1.
PYTHON_2 = (
    b"\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
    b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
    + PIXELS[0].tobytes()
    + b"tbs."
)


class Payload:
    """An object that calls a function when `pickle.load` reads it."""

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
        if numpy_1:  # keep the lengths in the pickle correct
            assert b"numpy._core." in content
            content = content.replace(b"numpy._core.m", b"numpy.core.m")
            content = content.replace(b"numpy._core.n", b"numpy.core.n")
            content = content.replace(b"\x8c\x16numpy.core.m", b"\x8c\x15numpy.core.m")
            content = content.replace(b"\x8c\x13numpy.core.n", b"\x8c\x12numpy.core.n")
            if protocol >= 4:  # frames contain their length
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
def test_the_ids_come_from_the_test_set(tmp_path: Path, ids: object) -> None:
    _, found = read_test_set(write(tmp_path / "set.pkl", {b"data": PIXELS, b"ids": ids}))
    assert found == ["7", "3", "9", "1", "0"]


def test_a_key_that_is_not_text_is_ignored(tmp_path: Path) -> None:
    images, _ = read_test_set(write(tmp_path / "set.pkl", {b"\xff": 1, b"data": PIXELS}))
    assert torch.equal(images, CHANNELS_FIRST)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_hostile_pickle_runs(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    hostile = write(tmp_path / "set.pkl", {"data": Payload(os.mkdir, str(trace))}, protocol)
    with pytest.raises(UserError, match=r"it asks for \w+\.mkdir"):
        unpickle_arrays(hostile)
    assert not trace.exists()
    # `pickle.load` without restrictions runs the payload.
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
    # The failed file does not change how the next file is read.
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


def test_an_incomplete_file_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "set.pkl", {"data": PIXELS})
    whole.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"set\.pkl is neither a picture nor"):
        read_unlabelled([whole])


def test_pictures_of_32_pixels_are_taken_as_they_are(tmp_path: Path) -> None:
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._0.png").write_text("what some systems put beside a picture")
    (tmp_path / ".thumbnails").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / ".thumbnails" / "0.png")
    found = read_unlabelled([tmp_path])
    assert torch.equal(found.images, CHANNELS_FIRST)
    assert found.ids == [str(tmp_path / f"{i}.png") for i in range(5)]
    assert found.resized == 0


def test_inputs_keep_their_order_and_are_counted_as_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0)
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
    assert capsys.readouterr().err.endswith("files: 3 of 4, 0 s left\n")


def test_a_wide_picture_is_cropped_to_its_middle_square(tmp_path: Path) -> None:
    wide = np.zeros((64, 100, 3), np.uint8)
    wide[:, 18:82] = (10, 200, 90)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_unlabelled([tmp_path / "wide.png"])
    assert found.resized == 1
    # Near the border the filter reaches over the edge.
    middle = found.images[0, :, 3:-3, 3:-3]
    assert middle.flatten(1).unique(dim=1).T.tolist() == [[10, 200, 90]]


def test_checks_as_fine_as_the_picture_become_grey(tmp_path: Path) -> None:
    checks = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "checks.png")
    images = read_unlabelled([tmp_path / "checks.png"]).images
    assert images.min() >= 126
    assert images.max() <= 129


def test_transparent_pixels_become_white_and_grey_three_channels(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (32, 32), 7).save(tmp_path / "grey.png")
    images = read_unlabelled([tmp_path]).images
    assert images[0].unique().tolist() == [255]
    assert images[1].unique().tolist() == [7]


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    Image.fromarray(PIXELS[0]).save(tmp_path / "turned.png", exif=exif)
    found = read_unlabelled([tmp_path / "turned.png"])
    assert torch.equal(found.images[0], CHANNELS_FIRST[0].rot90(-1, (1, 2)))


@pytest.mark.parametrize(
    ("mode", "pixels", "expected"),
    [
        ("I;16", [0, 257, 32768, 65535], [0, 1, 128, 255]),
        ("I", [0, 257, 32768, 65535], [0, 1, 128, 255]),
        ("F", [0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        ("F", [0, 1, 100.4, 255], [0, 1, 100, 255]),
        ("F", [0, 257, 32768, 65535], [0, 1, 128, 255]),
    ],
)
@pytest.mark.parametrize("side", [32, 1056])
def test_greys_of_more_than_8_bits_are_scaled(
    tmp_path: Path, mode: str, pixels: list[float], expected: list[int], side: int
) -> None:
    path, quarters = tmp_path / "deep.tiff", np.arange(side) * 4 // side
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    rows = np.array(pixels)[quarters].astype(dtype)
    Image.fromarray(np.repeat(rows[:, None], side, axis=1)).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    found, resized = read_picture(path)
    assert resized == (side != 32)
    # Not near the borders of the quarters, which the filter blurs.
    assert found[:, [3, 12, 20, 28]].flatten(2).unique(dim=2)[0].T.tolist() == [expected]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((32, 32), -1, np.int32), "greys from -1 to -1, outside 0 to 65535"),
        (np.full((32, 32), 65536, np.int32), "outside 0 to 65535"),
        (np.full((32, 32), 1e9, np.float32), "outside 0 to 65535"),
        (np.eye(32, dtype=np.float32) * np.float32(np.nan), "greys"),
    ],
)
def test_greys_of_an_unknown_range_are_refused(
    tmp_path: Path, pixels: np.ndarray, message: str
) -> None:
    Image.fromarray(pixels).save(tmp_path / "deep.tiff")
    with pytest.raises(PictureError, match=rf"deep\.tiff has .*{message}"):
        read_picture(tmp_path / "deep.tiff")


def test_a_16_bit_pixel_that_is_transparent_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32), np.uint16)
    pixels[:16] = 257 * 7
    Image.fromarray(pixels).save(tmp_path / "deep.png", transparency=0)
    found, _ = read_picture(tmp_path / "deep.png")
    assert found[0].unique().tolist() == [7, 255]
    assert found[0, 20].unique().tolist() == [255]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.apng"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(
        tmp_path / name,
        format="PNG" if name.endswith("apng") else None,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if name.endswith("webp") else {}),
    )
    with Image.open(tmp_path / name) as image:
        assert getattr(image, "n_frames", 1) == 2
    found = read_unlabelled([tmp_path])
    assert found.images[0].flatten(1).unique(dim=1).T.tolist() == [[255, 0, 0]]


def layers(mode: str) -> Image.Image:
    """A large picture; its middle square is red at the top, transparent or blue at the bottom."""
    size = (1301, 1100)
    image = Image.new("RGBA", size, "lime")
    clear = (0, 0, 0, 0) if mode in ("RGBA", "LA", "P") else "blue"
    image.paste("red", (100, 0, 1200, 550))
    image.paste(clear, (100, 550, 1200, 1100))
    return image if mode in ("RGBA", "P") else image.convert("RGB").convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGB", "a.png"), ("RGB", "a.jpg"), ("CMYK", "a.jpg"), ("RGBA", "a.png"), ("P", "a.gif")],
)
def test_a_large_picture_has_the_colours_of_a_small_one(
    tmp_path: Path, mode: str, name: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    layers(mode).save(tmp_path / name, **({} if name.endswith("gif") else {"exif": exif}))
    found, _ = read_picture(tmp_path / name)
    above, below = (7, 25) if name.endswith("gif") else (25, 7)
    lower = [255, 255, 255] if mode in ("RGBA", "P") else [0, 0, 255]
    for row, colour in ((above, [255, 0, 0]), (below, lower)):
        pixels = found[:, row, 3:-3].int()
        assert (pixels - torch.tensor(colour)[:, None]).abs().max() <= 3


PEAK = """
import resource, sys
from pathlib import Path
import torch
from datamodules.pictures import read_picture
torch.zeros(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(read_picture(Path(sys.argv[1]))[0].unique().tolist())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.trust
@pytest.mark.parametrize(
    ("name", "mode", "mebibytes"),
    [("a.jpg", "RGB", 100), ("a.png", "RGB", 1000), ("a.png", "RGBA", 1000), ("a.gif", "P", 500)],
)
def test_a_picture_of_13_000_pixels_needs_no_gigabytes_and_no_warning(
    tmp_path: Path, name: str, mode: str, mebibytes: int
) -> None:
    colour = {"P": 0, "RGB": (9, 9, 9), "RGBA": (9, 9, 9, 255)}[mode]
    image = Image.new(mode, (13_000, 13_000), colour)
    if mode == "P":
        image.putpalette([9] * 768)
    image.save(tmp_path / name)
    command = [sys.executable, "-c", PEAK, str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    colours, peak = done.stdout.splitlines()
    assert colours == "[9]"
    assert int(peak) < mebibytes


def test_a_picture_of_13_000_pixels_gives_no_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("1", (13_000, 13_000), 1).save(tmp_path / "a.png")
    found, resized = read_picture(tmp_path / "a.png")
    assert resized
    assert found.unique().tolist() == [255]
    assert len(recwarn) == 0


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    # A header without pixels: decoding would fail for another reason.
    header = struct.pack(">4s2I5B", b"IHDR", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    chunk += struct.pack(">I4s", 10, b"IDAT")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(PictureError, match=r"bomb\.png has more than 178,956,970 pixels$"):
        read_picture(tmp_path / "bomb.png")


def test_a_webp_has_a_lower_limit(tmp_path: Path) -> None:
    # VP8X, the extended format, with 10,000 x 10,000 pixels; then a small frame.
    small = io.BytesIO()
    Image.new("RGB", (32, 32)).save(small, "WEBP", lossless=True)
    sides = (10_000 - 1).to_bytes(3, "little") * 2
    chunks = b"WEBPVP8X" + struct.pack("<II", 10, 2) + sides
    chunks += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    frame = small.getvalue()[12:]
    header = bytes(6) + (31).to_bytes(3, "little") * 2 + bytes(4)
    chunks += b"ANMF" + struct.pack("<I", len(header + frame)) + header + frame
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    with pytest.raises(PictureError, match=r"a\.webp has more than 50,000,000 pixels$"):
        read_picture(tmp_path / "a.webp")


def test_a_picture_format_that_runs_programs_is_rejected(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png", format="EPS")
    with pytest.raises(PictureError, match=r"a\.png is EPS, not JPEG, "):
        read_picture(tmp_path / "a.png")


def test_unreadable_pictures_of_a_folder_are_listed_and_the_others_read(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(PIXELS[i]).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:1500])
    (tmp_path / "text.jpg").write_text("a letter")
    (tmp_path / "empty.gif").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    found = read_unlabelled([tmp_path])
    assert torch.equal(found.images, CHANNELS_FIRST[[0, 2]])
    reasons = {Path(line.partition(" ")[0]).name: line for line in found.unreadable}
    assert reasons.keys() == {"1.png", "text.jpg", "empty.gif", "gone.png"}
    assert "is not a whole picture: image file is truncated" in reasons["1.png"]
    assert "text.jpg is not a picture (JPEG, MPO, " in reasons["text.jpg"]
    assert reasons["gone.png"].endswith("No such file or directory")


def test_no_damage_to_a_picture_ends_the_command(tmp_path: Path) -> None:
    """Replace random bytes in files of every format."""
    generator = np.random.default_rng(0)
    source = Image.fromarray(PIXELS[0]).resize((50, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tiff", "ppm"):
        file = io.BytesIO()
        kind = {"jpg": "JPEG"}.get(suffix, suffix.upper())
        options = {"exif": exif} if suffix in ("png", "jpg", "webp", "tiff") else {}
        source.save(file, kind, **options)
        for i in range(40):
            content = bytearray(file.getvalue())
            for position in generator.integers(min(len(content), 300), size=4):
                content[position] = generator.integers(256)
            (tmp_path / f"{suffix}{i}.{suffix}").write_bytes(content)
    Image.fromarray(PIXELS[0]).save(tmp_path / "whole.png")
    found = read_unlabelled([tmp_path])
    assert len(found.images) + len(found.unreadable) == 7 * 40 + 1
    assert found.unreadable
    assert all("\n" not in line for line in found.unreadable)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        read_unlabelled([tmp_path])
    with pytest.raises(UserError, match=r"none\.png does not exist"):
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


def test_a_submission_has_kaggles_format() -> None:
    assert submission_csv(["0", "1", "2"], [3, 9, 0]) == "ID,Labels\n0,3\n1,9\n2,0\n"


def test_probabilities_follow_the_likeliest_name() -> None:
    text = probabilities_csv(["a,b.png"], torch.tensor([[0.25, 0.75]]), ["cat", "dog"])
    assert list(csv.reader(io.StringIO(text))) == [
        ["ID", "class", "cat", "dog"],
        ["a,b.png", "dog", "0.250000", "0.750000"],
    ]


def nested(levels: int) -> list[object]:
    """A list of 2 ** levels elements; its pickle has only a few bytes."""
    value: list[object] = []
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": nested(60)}),
        pickle.dumps({"data": nested(15), "ids": [nested(15)] * 200}),
        # A memo of 2 ** 31 entries, and an object of 2 ** 62 bytes.
        b"\x80\x04N" + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1) + b".",
        b"\x80\x04" + pickle.BINBYTES8 + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x04" + b"]" * 1_000 + b"a" * 999 + b".",
        b"\x80\x04" + b"(" * 10_000_000,
    ],
    ids=["doubling", "sum", "memo", "length", "depth", "operations"],
)
def test_a_pickle_that_would_exhaust_memory_or_time_is_rejected(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "set.pkl"
    path.write_bytes(content)
    # A new process with a limit of 4 GB of memory: torch and NumPy map most of this.
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from experiments.inference.array_pickles import unpickle_arrays\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "unpickle_arrays(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(path)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"experiments.console.UserError: {path} is neither a picture nor a")


def test_cells_are_neither_formulas_nor_escape_sequences() -> None:
    names = ["=1+1", "@SUM(A1)", "-cmd", "\x1b[31mred", "-5", "caf\u00e9.png", "a\u202eb"]
    text = submission_csv(names, range(7))
    assert [row[0] for row in csv.reader(io.StringIO(text))][1:] == [
        "'=1+1",
        "'@SUM(A1)",
        "'-cmd",
        r"\x1b[31mred",
        "-5",
        "caf\u00e9.png",
        r"a\u202eb",
    ]
