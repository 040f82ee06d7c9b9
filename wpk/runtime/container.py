"""The outer form of an artifact: a zip file of stored members whose every byte follows from (name, size, CRC) of each.

Because the layout has no freedom, headers need no digests of their own: a reader writes them anew and compares. Any zip tool
can list and unpack the file. Sizes are always written in zip64 form, so large members are no special case, and data starts
at multiples of 64 bytes, so that it can be used where it is mapped. The last member is ``manifest.json``; its SHA-256 is the
zip comment.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from zlib import crc32

ALIGN = 64
MANIFEST = "manifest.json"

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_END = struct.Struct("<IHHHHIIH")
_SIZES, _SIZES_AND_OFFSET = struct.Struct("<HHQQ"), struct.Struct("<HHQQQ")
_VERSION, _DATE, _UNIX = 45, 0x21, 3 << 8  # zip64; 1 January 1980
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_PADDING_ID = 0x7077
_MARK = b"wpk sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_TAIL_BYTES = _END64.size + _LOCATOR.size + _END.size + _COMMENT_BYTES


@dataclass(frozen=True)
class Member:
    """A stored file: where its header and its data start, in bytes from the start of the artifact."""

    name: str
    size: int
    crc: int
    offset: int

    @property
    def data(self) -> int:
        """The first byte of the data: aligned, after the header and its padding."""
        bare = self.offset + _LOCAL.size + len(self.name) + _SIZES.size + 4
        return -(-bare // ALIGN) * ALIGN

    @property
    def end(self) -> int:
        """One past the data: where the next member starts."""
        return self.data + self.size


def place(files: list[tuple[str, int, int]]) -> list[Member]:
    """Members of (name, size, CRC), one after the other."""
    members: list[Member] = []
    for name, size, crc in files:
        members.append(Member(name, size, crc, members[-1].end if members else 0))
    return members


def header(m: Member) -> bytes:
    """The local header: everything from ``m.offset`` to ``m.data``."""
    sizes = _SIZES.pack(1, 16, m.size, m.size)
    padding = m.data - m.offset - _LOCAL.size - len(m.name) - len(sizes) - 4
    extra = sizes + struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
    fixed = (0x04034B50, _VERSION, 0, 0, 0, _DATE, m.crc, _U32, _U32, len(m.name), len(extra))
    return _LOCAL.pack(*fixed) + m.name.encode("ascii") + extra


def tail(members: list[Member], manifest: bytes) -> bytes:
    """The central directory and the end records: everything after the last member."""
    directory = b"".join(map(_record, members))
    start, count = members[-1].end, len(members)
    made = _UNIX | _VERSION
    end64 = _END64.pack(0x06064B50, 44, made, _VERSION, 0, 0, count, count, len(directory), start)
    locator = _LOCATOR.pack(0x07064B50, 0, start + len(directory), 1)
    comment = _MARK + hashlib.sha256(manifest).hexdigest().encode()
    end = _END.pack(0x06054B50, 0, 0, _U16, _U16, _U32, _U32, len(comment))
    return directory + end64 + locator + end + comment


def find_manifest(data: memoryview) -> memoryview:
    """The manifest in the bytes of an artifact, its digest verified. Raises ValueError, saying what is wrong."""
    record_bytes = _CENTRAL.size + len(MANIFEST) + _SIZES_AND_OFFSET.size
    start = len(data) - _TAIL_BYTES - record_bytes
    if start < 0 or bytes(data[:4]) != b"PK\3\4":
        raise ValueError("it is no wpk artifact")
    comment = bytes(data[-_COMMENT_BYTES:])
    if not comment.startswith(_MARK):
        raise ValueError("its end is missing or damaged")
    *_, size, _, offset = _SIZES_AND_OFFSET.unpack_from(data, start + record_bytes - _SIZES_AND_OFFSET.size)
    first = Member(MANIFEST, size, 0, offset).data
    manifest = data[first : first + size]
    if hashlib.sha256(manifest).hexdigest().encode() != comment[len(_MARK) :]:
        raise ValueError("its manifest is damaged")
    return manifest


def check_layout(data: memoryview, members: list[Member], manifest: memoryview) -> None:
    """Raises ValueError unless all bytes of ``data`` outside the members' data are what :func:`header` and :func:`tail` give."""
    last = Member(MANIFEST, len(manifest), crc32(manifest), members[-1].end if members else 0)
    everything = [*members, last]
    for m in everything:
        if data[m.offset : m.data] != header(m):
            raise ValueError(f"the header of {m.name} is damaged")
    if data[last.end :] != tail(everything, bytes(manifest)):
        raise ValueError("its directory is damaged")


def _record(m: Member) -> bytes:
    extra = _SIZES_AND_OFFSET.pack(1, 24, m.size, m.size, m.offset)
    name = m.name.encode("ascii")
    fixed = (0x02014B50, _UNIX | _VERSION, _VERSION, 0, 0, 0, _DATE, m.crc, _U32, _U32, len(name), len(extra))
    return _CENTRAL.pack(*fixed, 0, 0, 0, 0o644 << 16, _U32) + name + extra
