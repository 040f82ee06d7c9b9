"""An artifact gives back what was saved, mapped and aligned, in a file that other tools can read too."""

import errno
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import handmade
import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from wpk.core.errors import StorageError
from wpk.runtime import artifact, container, tensors
from wpk.runtime.memory import address_of
from wpk.runtime.plan import Plan
from wpk.runtime.runner import load


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "m.wpk"
    write(path)
    return path


def write(path: Path, plan: Plan | None = None) -> None:
    parts = handmade.parts()
    artifact.save(
        path,
        plan or parts.plan,
        parts.binaries,
        parts.weights,
        {"region": b"some model"},
        {"add": "int add;\n"},
    )


def test_gives_back_what_was_saved(saved: Path) -> None:
    parts, original = artifact.read(saved), handmade.parts()
    assert parts.plan == original.plan and parts.plan.hash == original.plan.hash
    assert {k: bytes(v) for k, v in parts.binaries.items()} == {  # type: ignore[arg-type]
        k: v.read_bytes() for k, v in handmade.binaries().items()
    }
    assert parts.models == {"region": b"some model"} and parts.sources == {"add": "int add;\n"}
    np.testing.assert_array_equal(parts.weights["w"], original.weights["w"])


def test_runs(saved: Path) -> None:
    fed = handmade.feeds()
    with load(saved) as one, load(saved, threads=1) as other:
        for runner in (one, other):
            for found, wanted in zip(runner.run(None, fed), handmade.expected(fed), strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_weights_are_views_of_the_file(saved: Path) -> None:
    weight = artifact.read(saved).weights["w"]
    assert not weight.flags.writeable and not weight.flags.owndata
    assert address_of(weight) % 64 == 0
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(saved) in line]
    spans = [[int(x, 16) for x in fields[0].split("-")] for fields in maps]
    assert any(start <= address_of(weight) < stop for start, stop in spans)


def test_is_deterministic(saved: Path, tmp_path: Path) -> None:
    write(tmp_path / "again.wpk")
    assert (tmp_path / "again.wpk").read_bytes() == saved.read_bytes()


def test_zip_tools_read_it(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == [
            "plan.json", "binaries/kernels", "binaries/libwpkrt.so", "weights.safetensors", "models/region", "sources/add.c",
            "manifest.json",
        ]  # fmt: skip
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        found = load_safetensors(archive.read("weights.safetensors"))
    np.testing.assert_array_equal(found["w"], handmade.weights()["w"])


def test_headers_tell_sizes_beyond_32_bits() -> None:
    big = container.place([("a", 5 << 32, 1), ("b", 7, 2)])
    assert big[1].offset == big[0].data + (5 << 32) and big[1].data % 64 == 0
    assert len(container.header(big[1])) == big[1].data - big[1].offset


def test_replaces_an_older_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.wpk"
    path.write_text("old")
    write(path)
    assert list(tmp_path.iterdir()) == [path]
    assert artifact.read(path).plan == handmade.plan()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "m.wpk"
    path.write_text("old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=r"cannot write .*m\.wpk: No space left on device"):
        write(path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


def test_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        write(tmp_path / "absent" / "m.wpk")


def test_odd_names_of_members_are_refused(tmp_path: Path) -> None:
    parts = handmade.parts()
    with pytest.raises(ValueError, match=r"plain name.*'\.\./x'"):
        artifact.save(tmp_path / "m.wpk", parts.plan, {"../x": b""}, {})
    assert not list(tmp_path.iterdir())


def test_large_members_have_a_digest_for_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_CHUNK", 1000)
    write(tmp_path / "m.wpk")
    facts = zipfile.ZipFile(tmp_path / "m.wpk").read("manifest.json")
    assert facts.count(b"\n    ") > 20
    assert artifact.read(tmp_path / "m.wpk").plan == handmade.plan()


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"]
)
def test_tensors_of_every_dtype_and_shape(dtype: str) -> None:
    table = {f"t{n}": np.arange(n).astype(dtype) for n in (0, 1, 7, 64, 1000)}
    table |= {"scalar": np.array(1, dtype), "cube": np.ones((2, 3, 4), dtype)}
    size, pieces = tensors.encode(table)
    data = b"".join(bytes(p) for p in pieces)
    assert len(data) == size
    found = tensors.decode(memoryview(data))
    public = load_safetensors(data)
    assert list(found) == list(table)
    for name, array in table.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(public[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert (address_of(found[name]) - address_of(np.frombuffer(data, np.uint8))) % 64 == 0


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{"])
def test_tensors_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        tensors.decode(memoryview(data))


BARE = """
import os, sys
BLOCKED = ("onnx", "onnx_ir", "onnxruntime", "deap", "typer", "rich", "safetensors", "jinja2", "matplotlib", "wpk.dsl",
           "wpk.search", "wpk.kernels", "wpk.graph", "wpk.ops", "wpk.passes", "wpk.providers", "wpk.measure", "wpk.tuning",
           "wpk.planner", "wpk.report", "wpk.settings", "wpk.api", "wpk.cli", "wpk.configs")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import shutil
assert shutil.which("cc") is None and shutil.which("gcc") is None
import numpy as np
import wpk
fed = dict(np.load(sys.argv[2]))
with wpk.load(sys.argv[1]) as runner:
    np.savez(sys.argv[3], *runner.run(None, fed))
"""


def test_runs_with_no_compiler_and_no_compiler_parts(saved: Path, tmp_path: Path) -> None:
    fed = handmade.feeds(5)
    np.savez(tmp_path / "in.npz", **fed)  # type: ignore[arg-type]
    files = [str(saved), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *files], env={"PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")
    for name, wanted in zip(found.files, handmade.expected(fed), strict=True):
        np.testing.assert_array_equal(found[name], wanted)


def test_explanations_do_not_change_the_plan_hash() -> None:
    plan = handmade.plan()
    assert replace(plan, meta={"seconds": 1.0}).hash == plan.hash
    assert replace(plan, model="other").hash != plan.hash
