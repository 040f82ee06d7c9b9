"""Damaged, truncated and foreign artifacts are refused before any native code of theirs is loaded."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import handmade
import pytest

from wpk.core.errors import ArtifactError, WpkError
from wpk.core.target import host_target
from wpk.runtime import artifact, binaries
from wpk.runtime.plan import Plan
from wpk.runtime.runner import load


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("artifact") / "m.wpk"
    parts = handmade.parts()
    # bytes that are no library: loading them would be another error than the one expected
    contents = dict.fromkeys(parts.binaries, b"never loaded " * 30)
    artifact.save(path, parts.plan, contents, parts.weights, {"region": b"model"})
    return path.read_bytes()


@pytest.fixture(autouse=True)
def no_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("native code was loaded")

    monkeypatch.setattr(binaries.ctypes, "CDLL", fail)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """Writes an artifact, expects it to be refused, gives the message."""

    def check(data: bytes) -> str:
        path = tmp_path / "bad.wpk"
        path.write_bytes(data)
        with pytest.raises(ArtifactError) as caught:
            load(path)
        message = str(caught.value)
        assert "\n" not in message and str(path) in message
        return message

    return check


def positions(data: bytes) -> list[int]:
    """Every byte of the small parts (headers, manifest, directory, end), and a sample of all."""
    headers = [m.start() + i for m in re.finditer(rb"PK[\1\3\5\6][\2\4\6\7]", data) for i in range(96)]
    spread = random.Random(0).sample(range(len(data)), 600)
    return sorted({p for p in (*headers, *spread, *range(len(data) - 300, len(data))) if p < len(data)})


def test_whole_artifact_would_be_read(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.wpk").write_bytes(whole)
    assert artifact.load(tmp_path / "m.wpk").plan == handmade.plan()


def test_a_flipped_byte_anywhere(whole: bytes, refused: Callable[[bytes], str]) -> None:
    rng = random.Random(1)
    for position in positions(whole):
        damaged = bytearray(whole)
        damaged[position] ^= rng.choice((1, 128, 255))
        message = refused(bytes(damaged))
        assert re.search(r"damaged|no wpk artifact", message), (position, message)


def test_truncation_anywhere(whole: bytes, refused: Callable[[bytes], str]) -> None:
    for length in {0, 1, 3, 4, 50, *random.Random(2).sample(range(len(whole)), 100), len(whole) - 1}:
        refused(whole[:length])


def test_bytes_added(whole: bytes, refused: Callable[[bytes], str]) -> None:
    refused(whole + b"\0")
    refused(b"\0" + whole)
    refused(whole + whole)
    refused(whole[:1000] + b"\0" + whole[1000:])


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty"),
        (b"just text\n" * 100, "no wpk artifact"),
        (b"PK\x03\x04" + b"\0" * 1000, "end is missing"),
        (b"PK", "no wpk artifact"),
    ],
)
def test_other_files(refused: Callable[[bytes], str], data: bytes, message: str) -> None:
    assert message in refused(data)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent\.wpk: No such file"):
        load(tmp_path / "absent.wpk")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Is a directory"):
        load(tmp_path)


def saved(path: Path, plan: Plan) -> Path:
    parts = handmade.parts()
    artifact.save(path, plan, dict.fromkeys(parts.binaries, b"never loaded"), parts.weights)
    return path


def test_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "FORMAT", 2)
    path = saved(tmp_path / "m.wpk", handmade.plan())
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="format 2, this wpk reads format 1"):
        artifact.read(path)


def foreign(**facts: object) -> Plan:
    target = replace(host_target(2), **facts)  # type: ignore[arg-type]
    return replace(handmade.plan(), target=target.to_json(), fingerprint=target.fingerprint)


def test_another_machine(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.wpk", foreign(model="Another CPU", l2=12345))
    with pytest.raises(
        ArtifactError, match=r"another machine \(model: expected Another CPU, found .*; l2: expected 12345"
    ):
        load(path)
    assert artifact.read(path).plan.target["l2"] == 12345  # to explain it elsewhere
    assert artifact.load(path, any_target=True).plan.target["l2"] == 12345


def test_missing_instructions_are_refused_even_when_any_target_will_do(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.wpk", foreign(isas=("avx4096", "scalar")))
    with pytest.raises(ArtifactError, match=r"another machine \(isas: expected \['avx4096', 'scalar'\]"):
        artifact.load(path, any_target=True)
    path = saved(tmp_path / "m.wpk", foreign(arch="vax"))
    with pytest.raises(ArtifactError, match="arch: expected vax"):
        artifact.load(path, any_target=True)


def test_forged_fingerprint(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.wpk", replace(handmade.plan(), fingerprint="cpu-other"))
    with pytest.raises(ArtifactError, match="cpu-other"):
        load(path)


def test_exit_code() -> None:
    assert ArtifactError.exit_code == 5 and issubclass(ArtifactError, WpkError)
