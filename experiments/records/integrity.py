"""Damage in the files of a run: checksums of checkpoints, settings and exports."""

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from experiments.console import UserError

#: the checksums of an exported folder, in the format of `sha256sum`
CHECKSUMS = "SHA256SUMS"
#: the last line of a run's config.yaml
SEAL = "# SHA-256 of the lines above: "
#: the end of a checkpoint
COMMENT = b"CRC-32 %08x"


def seal_archive(archive: BytesIO) -> None:
    """Add a checkpoint's CRC-32 as the comment of its zip archive."""
    archive.seek(-2, os.SEEK_END)
    archive.write(len(COMMENT % 0).to_bytes(2, "little"))
    archive.write(COMMENT % zlib.crc32(archive.getbuffer()))


def check_archive(path: Path) -> None:
    """Raise UserError if a checkpoint is damaged; torch.load may not notice it."""
    try:
        with path.open("rb") as file:
            sound = _is_sound(file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # its class depends on the file's bytes
        raise UserError(f"{path} is damaged or is not a checkpoint: {error}") from None
    if not sound:
        raise UserError(f"{path} is damaged: it does not match its checksum")


def _is_sound(file: BinaryIO) -> bool:
    """Whether a checkpoint matches its CRC-32.

    Without a CRC-32 of the whole file, each part of the archive is compared with its own. The
    archive's directory has none.
    """
    size = file.seek(0, os.SEEK_END)
    end = file.seek(max(0, size - len(COMMENT % 0)))
    comment = file.read()
    if not comment.startswith(COMMENT[:7]):
        # Without a comment, an archive ends with the length of the comment: two bytes, 0.
        return zipfile.ZipFile(file).testzip() is None and comment.endswith(b"\0\0")
    file.seek(0)
    crc = 0
    while chunk := file.read(min(1 << 20, end - file.tell())):
        crc = zlib.crc32(chunk, crc)
    return comment == COMMENT % crc


def seal(text: str) -> str:
    """The text of a settings file with its checksum as the last line."""
    return f"{text}{SEAL}{_sha256(text.encode())}\n"


def check_seal(path: Path) -> None:
    """Raise UserError if a settings file does not match its checksum, if it has one."""
    text, found, digest = path.read_text("utf-8", errors="replace").rpartition(SEAL)
    if found and digest.strip() != _sha256(text.encode()):
        raise UserError(
            f"{path} was changed or damaged: restore it, or remove its last line to accept it"
        )


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file in a folder, as `sha256sum -c` reads it."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    lines = [f"{_sha256(path.read_bytes())}  {path.name}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), "utf-8")


def check_checksums(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if a file does not match SHA256SUMS, if there is one."""
    if not (folder / CHECKSUMS).exists():
        return
    sums = (folder / CHECKSUMS).read_text("utf-8", errors="replace")
    lines = re.findall(r"^(\w{64})  (.+)$", sums, re.MULTILINE)
    digests = {name: digest for digest, name in lines}
    for name in names:
        if digests.get(name) != _sha256((folder / name).read_bytes()):
            raise UserError(f"{folder / name} was changed or damaged: see {CHECKSUMS}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
