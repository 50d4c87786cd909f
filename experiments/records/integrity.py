"""Damage in the files of a run: checksums of checkpoints, settings and exports."""

import hashlib
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from experiments.console import UserError

#: the checksums of an exported folder, in the format of `sha256sum`
CHECKSUMS = "SHA256SUMS"
#: the last line of a run's config.yaml
SEAL = "# SHA-256 of the lines above: "


def check_archive(path: Path) -> None:
    """Raise UserError if a checkpoint, which is a zip archive, is damaged.

    Compares every file of the archive with its CRC-32; torch.load does not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # its class depends on the file's bytes
        raise UserError(f"{path} is damaged or is not a checkpoint: {error}") from None
    if damaged:
        raise UserError(f"{path} is damaged: {damaged} does not match its checksum")


def seal(text: str) -> str:
    """The text of a settings file with its checksum as the last line."""
    return f"{text}{SEAL}{_sha256(text.encode())}\n"


def check_seal(path: Path) -> None:
    """Raise UserError if a settings file does not match its checksum; it may have none."""
    text, found, digest = path.read_text().rpartition(SEAL)
    if found and digest.strip() != _sha256(text.encode()):
        raise UserError(
            f"{path} was changed or damaged: restore it, or remove its last line to accept it"
        )


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file in a folder; `sha256sum -c SHA256SUMS` checks them too."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    lines = [f"{_sha256(path.read_bytes())}  {path.name}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines))


def check_checksums(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if one of these files does not match SHA256SUMS, if that exists."""
    if not (folder / CHECKSUMS).exists():
        return
    lines = re.findall(r"^(\w{64})  (.+)$", (folder / CHECKSUMS).read_text(), re.MULTILINE)
    digests = {name: digest for digest, name in lines}
    for name in names:
        if digests.get(name) != _sha256((folder / name).read_bytes()):
            raise UserError(f"{folder / name} was changed or damaged: see {CHECKSUMS}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
