"""The ``.wpk`` file: plan, binaries, weights and region models of one compiled model ↔ :class:`wpk.runtime.parts.Parts`.

Members: ``plan.json``, ``binaries/*``, ``weights.safetensors``, ``models/*``, ``sources/*`` (C or CUDA of generated kernels,
for people), ``manifest.json`` (versions, target, SHA-256 of each member). Reading maps the file, verifies all of it, and
copies no weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from wpk import __version__
from wpk.core.errors import ArtifactError, StorageError
from wpk.core.target import host_target
from wpk.runtime import tensors
from wpk.runtime.container import MANIFEST, Member, check_layout, find_manifest, header, place, tail
from wpk.runtime.parts import Content, Parts
from wpk.runtime.plan import Plan

#: Raised when the meaning of members changes; a reader refuses other formats.
FORMAT = 1

_PLAN, _WEIGHTS, _BINARIES, _MODELS = "plan.json", "weights.safetensors", "binaries/", "models/"
_SOURCES, _TEXTS = "sources/", {"cuda": ".cu"}
#: Members are hashed in pieces of this many bytes, so that large ones are verified by several threads.
_CHUNK = 8 << 20
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

Pieces = Iterable[bytes | memoryview]


@dataclass(frozen=True)
class _Written:
    """What the manifest says of a member."""

    name: str
    size: int
    crc: int
    sha256: tuple[str, ...]


def save(
    path: Path | str,
    plan: Plan,
    binaries: Mapping[str, Content],
    weights: Mapping[str, np.ndarray],
    models: Mapping[str, bytes] | None = None,
    sources: Mapping[str, str] | None = None,
) -> None:
    """Write an artifact. The file appears whole or not at all; what was at ``path`` before stays until then.

    Raises StorageError when it cannot be written, ValueError for names of binaries or models that are no plain names.
    """
    target = Path(path)
    contents = _contents(plan, binaries, weights, models or {}, sources or {})
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            _write(file, plan, contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def read(path: Path | str) -> Parts:
    """Everything in an artifact, for whatever machine it was made; all bytes are verified. Weights are mapped.

    Raises ArtifactError when the file is missing, damaged or of another format.
    """
    data = _map(Path(path))
    try:
        manifest = find_manifest(data)
        facts = json.loads(bytes(manifest))
        if facts["format"] != FORMAT:
            raise ValueError(f"it has format {facts['format']}, this wpk reads format {FORMAT}")
        members = place([(m["name"], m["size"], m["crc"]) for m in facts["members"]])
        check_layout(data, members, manifest)
        _check_digests(data, members, [m["sha256"] for m in facts["members"]])
        return _parts({m.name: data[m.data : m.end] for m in members})
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from error


def load(path: Path | str, any_target: bool = False) -> Parts:
    """:func:`read`, and the assurance that this machine is the one it was made for.

    With ``any_target`` a machine that has the instructions is enough, though the tuning may not suit it. Raises ArtifactError.
    """
    parts = read(path)
    _check_target(Path(path), parts.plan, any_target)
    return parts


# Writing


def _contents(
    plan: Plan,
    binaries: Mapping[str, Content],
    weights: Mapping[str, np.ndarray],
    models: Mapping[str, bytes],
    sources: Mapping[str, str],
) -> Iterator[tuple[str, Pieces]]:
    """Members in file order, each as pieces."""
    yield _PLAN, [json.dumps(plan.to_json()).encode()]
    for key in sorted(binaries):
        yield _BINARIES + _plain(key), _pieces(binaries[key])
    yield _WEIGHTS, tensors.encode(weights)[1]
    for key in sorted(models):
        yield _MODELS + _plain(key), [models[key]]
    for key in sorted(sources):
        yield _SOURCES + _plain(key) + _suffix(plan), [sources[key].encode()]


def _suffix(plan: Plan) -> str:
    return _TEXTS.get(str(plan.target.get("arch")), ".c")


def _plain(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"expected a plain name of letters, digits, '.', '_' and '-', found {key!r}")
    return key


def _pieces(content: Content) -> Pieces:
    return [content.read_bytes() if isinstance(content, Path) else content]


def _write(file: BinaryIO, plan: Plan, contents: Iterable[tuple[str, Pieces]]) -> None:
    written: list[_Written] = []
    for name, pieces in contents:
        written.append(_write_member(file, name, pieces))
    manifest = json.dumps(_manifest(plan, written), indent=1).encode()
    _write_member(file, MANIFEST, [manifest])
    members = place([*((w.name, w.size, w.crc) for w in written), (MANIFEST, len(manifest), crc32(manifest))])
    file.write(tail(members, manifest))


def _write_member(file: BinaryIO, name: str, pieces: Pieces) -> _Written:
    """Data first; the header, which tells size and CRC, when they are known."""
    start = Member(name, 0, 0, file.tell())
    file.write(header(start))
    digests = _ChunkDigests()
    size = crc = 0
    for piece in pieces:
        file.write(piece)
        digests.update(memoryview(piece))
        size, crc = size + len(piece), crc32(piece, crc)
    file.seek(start.offset)
    file.write(header(Member(name, size, crc, start.offset)))
    file.seek(0, os.SEEK_END)
    return _Written(name, size, crc, digests.finish())


class _ChunkDigests:
    """SHA-256 of each ``_CHUNK`` bytes of a stream."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hash = hashlib.sha256()
        self._filled = 0

    def update(self, piece: memoryview) -> None:
        """Take the next bytes."""
        while piece:
            part = piece[: _CHUNK - self._filled]
            self._hash.update(part)
            self._filled += len(part)
            piece = piece[len(part) :]
            if self._filled == _CHUNK:
                self._cut()

    def finish(self) -> tuple[str, ...]:
        """The digests, as hexadecimal texts."""
        if self._filled:
            self._cut()
        return tuple(self._done)

    def _cut(self) -> None:
        self._done.append(self._hash.hexdigest())
        self._hash = hashlib.sha256()
        self._filled = 0


def _manifest(plan: Plan, written: list[_Written]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "wpk": __version__,
        "model": plan.model,
        "plan": plan.hash,
        "fingerprint": plan.fingerprint,
        "target": plan.target,
        "chunk": _CHUNK,
        "members": [{"name": w.name, "size": w.size, "crc": w.crc, "sha256": w.sha256} for w in written],
    }


# Reading


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_POPULATE", 0)
            return memoryview(mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        raise ArtifactError(f"{path} cannot be used: it is empty") from None


def _check_digests(data: memoryview, members: list[Member], digests: list[list[str]]) -> None:
    jobs = [job for m, expected in zip(members, digests, strict=True) for job in _chunks(data, m, expected)]

    def damaged(job: tuple[str, memoryview, str]) -> str | None:
        name, piece, expected = job
        return None if hashlib.sha256(piece).hexdigest() == expected else name

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name in pool.map(damaged, jobs):
            if name is not None:
                raise ValueError(f"{name} is damaged")


def _chunks(data: memoryview, m: Member, digests: list[str]) -> Iterator[tuple[str, memoryview, str]]:
    starts = range(m.data, m.end, _CHUNK)
    if len(starts) != len(digests):
        raise ValueError(f"{m.name} has {len(digests)} digests, expected {len(starts)}")
    for start, digest in zip(starts, digests, strict=True):
        yield m.name, data[start : min(start + _CHUNK, m.end)], digest


def _parts(contents: Mapping[str, memoryview]) -> Parts:
    def under(folder: str) -> dict[str, memoryview]:
        return {name.removeprefix(folder): data for name, data in contents.items() if name.startswith(folder)}

    plan = Plan.from_json(json.loads(bytes(contents[_PLAN])))
    models = {key: bytes(data) for key, data in under(_MODELS).items()}
    sources = {name.removesuffix(_suffix(plan)): bytes(data).decode() for name, data in under(_SOURCES).items()}
    return Parts(plan, under(_BINARIES), tensors.decode(contents[_WEIGHTS]), models, sources)


def _check_target(path: Path, plan: Plan, any_target: bool) -> None:
    if plan.target.get("arch") == "cuda":
        return  # the device says what it is when the runner opens it
    host = host_target(int(plan.target.get("threads", 1)))
    if host.fingerprint == plan.fingerprint:
        return
    found = host.to_json()
    names = ("arch", "isas") if any_target else tuple(found)
    wanted = {name: _listed(plan.target.get(name)) for name in names}
    here = {name: _listed(found[name]) for name in names}
    if any_target and wanted["arch"] == here["arch"] and set(wanted["isas"]) <= set(here["isas"]):
        return
    different = "; ".join(
        f"{n}: expected {wanted[n]}, found {here[n]}" for n in names if wanted[n] != here[n]
    )
    raise ArtifactError(f"{path} was made for another machine ({different or plan.fingerprint})")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
