"""The index beside a log, ``LOG.index``: the columns of its entries, so that opening need not parse every line.

It is a copy of what the log says, never the truth: it holds the length and checksum of the part of the log that it stands for.
Missing, torn, of another version or not of this log, it is ignored and made anew; lines behind that part are parsed. It is
replaced as a whole and never waited for, so that being killed at any moment is harmless.

    magic · length of the head (8 bytes) · head (JSON) · columns, one after the other · checksum of all before (4 bytes)
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from array import array
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from wpk.tuning.entries import COLUMNS, Entries, Origin

_MAGIC = b"wpk index 1\n"
_CHUNK = 1 << 20
#: New records that make a new index worth writing: so many, and so small a share of all.
WORTH, _SHARE = 512, 16


class Covered(NamedTuple):
    """The part of a log that an index stands for: bytes from its start, their checksum, lines."""

    end: int
    checksum: int
    lines: int


def index_path(log: Path) -> Path:
    """Where the index of a log lies."""
    return log.with_name(f"{log.name}.index")


def is_due(rows: int, saved: int) -> bool:
    """True when an index of ``saved`` rows is worth replacing by one of ``rows``: often while small, rarely when large."""
    return rows - saved >= max(WORTH, saved // _SHARE)


def save_index(log: Path, entries: Entries, seals: list[dict[str, int]], covered: Covered) -> bool:
    """Write the index, at once whole; False where the folder does not let us."""
    head = {
        "byteorder": sys.byteorder, "columns": COLUMNS, "rows": len(entries), "covered": covered, "seals": seals,
        "keys": list(entries.keys), "forms": entries.forms, "origins": list(entries.origins),
    }  # fmt: skip
    text = json.dumps(head, separators=(",", ":")).encode()
    data = b"".join((_MAGIC, len(text).to_bytes(8, "little"), text, *(c.tobytes() for c in entries.columns.values())))
    path = index_path(log)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data + crc32(data).to_bytes(4, "little"))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True


def load_index(log: Path, file: int) -> tuple[Entries, list[dict[str, int]], Covered] | None:
    """The index of the log open as ``file``, or None when there is none that fits."""
    try:
        data = index_path(log).read_bytes()
        if not data.startswith(_MAGIC) or crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            return None
        start = len(_MAGIC) + 8
        size = int.from_bytes(data[len(_MAGIC) : start], "little")
        head: dict[str, Any] = json.loads(data[start : start + size])
        covered = Covered(*head["covered"])
        if head["byteorder"] != sys.byteorder or head["columns"] != COLUMNS or not _fits(file, covered):
            return None
        return _entries(head, memoryview(data)[start + size : -4]), head["seals"], covered
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entries(head: dict[str, Any], data: memoryview) -> Entries:
    """Entries from the head and the columns' bytes. Raises ValueError when they do not go together."""
    entries, at = Entries(), 0
    for name, code in COLUMNS.items():
        column: array[Any] = array(code)
        size = head["rows"] * column.itemsize
        column.frombytes(data[at : at + size])
        if len(column) != head["rows"]:
            raise ValueError(name)
        entries.columns[name], at = column, at + size
    entries.keys = {key: i for i, key in enumerate(head["keys"])}
    entries.forms = head["forms"]
    entries.origins = {Origin(*o): i for i, o in enumerate(head["origins"])}
    return entries


def _fits(file: int, covered: Covered) -> bool:
    """True when the file begins with what the index stands for."""
    checksum = at = 0
    while at < covered.end:
        chunk = os.pread(file, min(_CHUNK, covered.end - at), at)
        if not chunk:
            return False
        checksum, at = crc32(chunk, checksum), at + len(chunk)
    return checksum == covered.checksum
