"""The compiler is found or its absence explained; builds are cached by content and fail as values."""

import ctypes
import os
from pathlib import Path

import pytest

from wpk.core.errors import StorageError, ToolchainError
from wpk.core.target import host_target
from wpk.measure.builder import CompileError, build, build_many, default_cache
from wpk.measure.toolchain import ISA_FLAGS, Compiler, find_compiler, flags

ADD = '#include "wpk.h"\nint add(int a, int b) { return a + b; }\n'


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return find_compiler()


def test_finds_a_compiler_with_a_version(compiler: Compiler) -> None:
    assert Path(compiler.command[0]).exists()
    assert any(c.isdigit() for c in compiler.version)


def test_explicit_command_is_used(compiler: Compiler) -> None:
    assert find_compiler(compiler.command[0]) == compiler


def test_missing_explicit_compiler_is_named() -> None:
    with pytest.raises(ToolchainError, match="no-such-cc"):
        find_compiler("/no/where/no-such-cc")


def test_broken_explicit_compiler_is_an_error() -> None:
    with pytest.raises(ToolchainError, match="does not work"):
        find_compiler("false")


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"install gcc or clang .*wpk\[zig\]"):
        find_compiler()


def test_flags_differ_by_isa_and_unknown_isa_is_refused() -> None:
    assert "-mavx512f" in flags("avx512") and "-mavx512f" not in flags("avx2")
    assert flags("scalar") == flags("neon")
    with pytest.raises(ToolchainError, match="sse9"):
        flags("sse9")


@pytest.mark.parametrize("isa", [i for i in ISA_FLAGS if i in host_target().isas])
def test_builds_for_every_isa_of_the_host(compiler: Compiler, tmp_path: Path, isa: str) -> None:
    assert ctypes.CDLL(str(build(ADD, isa, compiler, tmp_path))).add(2, 3) == 5


def test_same_content_is_built_once(compiler: Compiler, tmp_path: Path) -> None:
    first = build(ADD, "scalar", compiler, tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build(ADD, "scalar", compiler, tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert build(ADD + "\n", "scalar", compiler, tmp_path) != first
    assert sorted(p.suffix for p in first.parent.iterdir()) == [".so", ".so"]


def test_compile_error_carries_the_first_lines(compiler: Compiler, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        build("int f( {\n" * 50, "scalar", compiler, tmp_path)
    assert "error" in caught.value.detail and len(caught.value.detail.splitlines()) <= 8
    assert not list((tmp_path / "build").iterdir())


def test_build_many_keeps_order_and_failures(compiler: Compiler, tmp_path: Path) -> None:
    texts = [f"int f{i}(void) {{ return {i}; }}" for i in range(4)]
    texts[2] = "nonsense"
    built = build_many([(t, "scalar") for t in texts], compiler, tmp_path, jobs=2)
    assert isinstance(built[2], CompileError)
    for i in (0, 1, 3):
        path = built[i]
        assert isinstance(path, Path) and getattr(ctypes.CDLL(str(path)), f"f{i}")() == i


def test_unwritable_cache_is_a_storage_error(compiler: Compiler, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="file"):
        build(ADD, "scalar", compiler, blocked)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_cache_is_a_storage_error(compiler: Compiler, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        build(ADD, "scalar", compiler, tmp_path / "sub")


def test_a_compiler_that_takes_too_long_is_a_compile_error(compiler: Compiler, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="more than"):
        build(ADD, "scalar", compiler, tmp_path, timeout=1e-4)


def test_default_cache() -> None:
    assert default_cache().name == "wpk"
    assert default_cache("/x/y") == Path("/x/y")
