"""The data that a run has logged to W&B, read from the run's own files."""

import json
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any

from experiments.console import UserError

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32_768
# A fragment of a record: checksum, length, and its kind: the whole record (1), its first (2), a
# middle (3) or its last fragment (4). No fragment crosses a block.
FRAGMENT = Struct("<IHB")


def logged_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows that all launches logged; tables and images are given as locations.

    UserError if a file is not from W&B or is damaged.
    """
    # These packages may be missing, and the names that we need have no types.
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for file in sorted(folder.glob("wandb/*run-*/*.wandb")):
        for content in read_records(file):
            row: dict[str, Any] = {}
            try:
                for item in Record.FromString(content).history.item:
                    key, *part = item.nested_key or [item.key]
                    value = json.loads(item.value_json)
                    if part:
                        row.setdefault(key, {})[part[0]] = value
                    else:
                        row[key] = value
            except (DecodeError, ValueError):
                raise UserError(f"{file} is damaged") from None
            if row:
                yield row


def read_records(file: Path) -> Iterator[bytes]:
    """The records in a file of W&B: a header, then LevelDB's log format.

    An incomplete record at the end, as in a running run, is left out. UserError if the header is
    not W&B's.
    """
    content = file.read_bytes()
    if not content.startswith(HEADER):
        raise UserError(f"{file} is not a file of W&B, or of another version")
    position, record = len(HEADER), b""
    while True:
        left = BLOCK - position % BLOCK
        if left < FRAGMENT.size:
            position += left
        if position + FRAGMENT.size > len(content):
            return
        _, length, kind = FRAGMENT.unpack_from(content, position)
        position += FRAGMENT.size
        if position + length > len(content):
            return
        record += content[position : position + length]
        position += length
        if kind in (1, 4):
            yield record
            record = b""
