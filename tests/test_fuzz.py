"""Feed mutated files to every reader of files from strangers, and record the result.

python tests/test_fuzz.py --inputs 100000 --output experiments/results/trust/fuzz.json

Each input is a valid file with random changes: flipped bits, removed, repeated or inserted pieces,
and numbers replaced by extreme ones. A reader must return, or raise a UserError or a
PictureError, which the commands print in one line, within five seconds. The memory of the process
must grow by less than 1 GiB.
"""

import argparse
import io
import json
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image

from datamodules.pictures import PictureError, read_picture
from experiments.claims.suites import SUITES, load_suite
from experiments.console import UserError
from experiments.inference.finished import load_weights
from experiments.inference.unlabelled import read_test_set
from experiments.records.provenance import origin
from experiments.records.record import read_any, read_benchmark, write_atomically
from experiments.training.launch import read_flags

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
SECONDS = 5
BYTES = 2**30
EXTREME = (b"\xff" * 4, b"\x00" * 8, b"\x7f\xff\xff\xff", b"1e999", b"-1", b"*a", b"&a", b"[" * 999)

Reader = Callable[[Path], object]


def _picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(256, size=(40, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"network.a": torch.zeros(9)}, "epoch": 1, "score": 0.5}, file)
    return file.getvalue()


def _read_checkpoint(path: Path) -> object:
    # As `FinishedRun.network` does for errors of torch.load.
    path.replace(path.with_name("best.ckpt"))
    try:
        return load_weights(path.parent, "raw")
    except UserError:
        raise
    except Exception as error:  # its class depends on the file's bytes
        raise UserError(f"{path} cannot be read ({type(error).__name__})") from None


def readers() -> dict[str, tuple[Reader, str, list[bytes]]]:
    """Name -> reader, suffix of its files, and valid files."""
    arrays = {"data": np.zeros((2, 3072), np.uint8), "ids": ["a", "b"]}
    return {
        "pickle": (
            read_test_set,
            ".pkl",
            [pickle.dumps(arrays, protocol) for protocol in range(6)],
        ),
        "picture": (
            read_picture,
            ".png",
            [_picture(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")],
        ),
        "record": (read_any, ".json", [(RESULTS / "champion_cpu.json").read_bytes()]),
        "benchmark": (
            read_benchmark,
            ".json",
            [(RESULTS / "benchmarks" / "predict.json").read_bytes()],
        ),
        "suite": (load_suite, ".yaml", [x.read_bytes() for x in sorted(SUITES.glob("*.yaml"))]),
        "settings": (
            lambda path: read_flags(["--arch", "resnet", "--config", str(path)]),
            ".yaml",
            [b"arch: resnet\nmodel: {lr: 0.1, milestones: [0.3, 0.6]}\ndata: &d {cutout: 16}\n"],
        ),
        "checkpoint": (_read_checkpoint, ".ckpt", [_checkpoint()]),
    }


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Change a file in one to four places."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        size = chance.choice((1, 2, 8, 64, 1000))
        match chance.randrange(6):
            case 0:
                if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size] * chance.randint(1, 50)
            case 3:
                data[at:at] = chance.randbytes(size)
            case 4:
                data[at : at + 4] = chance.choice(EXTREME)
            case 5:
                del data[at:]
    return bytes(data)


def too_slow(*_: Any) -> NoReturn:
    raise TimeoutError(f"more than {SECONDS} seconds")


def fuzz(inputs: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Give mutated files to the readers in turn; count how often each reader ended in each way.

    Raises AssertionError for the first input that a reader does not handle. The folder keeps this
    input.
    """
    chance, all_ = random.Random(seed), readers()
    endings = {name: Counter[str]() for name in all_}
    signal.signal(signal.SIGALRM, too_slow)  # no other code uses SIGALRM
    for number in range(inputs):
        name = list(all_)[number % len(all_)]
        read, suffix, corpus = all_[name]
        # Each reader's first file is sound.
        content = corpus[0] if number < len(all_) else mutate(chance.choice(corpus), chance)
        path = folder / f"input{suffix}"
        path.write_bytes(content)
        signal.alarm(SECONDS)
        try:
            read(path)
            endings[name]["read"] += 1
        except (UserError, PictureError):
            endings[name]["rejected"] += 1
        except BaseException as error:
            (folder / f"failed{suffix}").write_bytes(content)
            raise AssertionError(
                f"{name}, input {number}: {type(error).__name__}: {error}"
            ) from error
        finally:
            signal.alarm(0)
    return endings


def test_mutated_files_are_read_or_rejected(tmp_path: Path) -> None:
    endings = fuzz(700, seed=1, folder=tmp_path)
    assert all(found["read"] and found["rejected"] for found in endings.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Feed mutated files to all readers.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the record to write")
    flags = parser.parse_args()
    facts = origin()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    endings = fuzz(flags.inputs, flags.seed, folder)
    growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert growth < BYTES, f"memory grew by {growth:,} bytes"
    record = {
        "command": " ".join(["python", *sys.argv]),
        **facts,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "seed": flags.seed,
        "inputs": flags.inputs,
        "memory_growth_bytes": growth,
        "endings": endings,
    }
    write_atomically(flags.output, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["endings"]))


if __name__ == "__main__":
    main()
