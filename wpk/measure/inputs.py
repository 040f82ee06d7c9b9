"""What candidates of a workload are checked on: random inputs and the oracle's answer, made once and kept in files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Lock

import numpy as np

from wpk.core.errors import StorageError
from wpk.core.tensor import to_layout
from wpk.core.workload import Workload
from wpk.measure.check import reduction_length
from wpk.measure.frames import Message
from wpk.runtime.ports import numpy_dtype

#: The logical outputs of a workload on logical inputs.
Oracle = Callable[[Workload, Sequence[np.ndarray]], Sequence[np.ndarray]]

#: Arrays go to memory-backed files when this much is free there.
_ROOM = 4 << 30
#: Bytes of inputs and answers kept for workloads that come back.
_KEEP = 1 << 30


@dataclass(frozen=True)
class Prepared:
    """Constants (logical, in the order of ``workload.constants``), and the message that tells a worker of the workload."""

    constants: tuple[np.ndarray, ...]
    message: Message
    nbytes: int


class Folder:
    """A folder of array files, in memory where the system has room there."""

    def __init__(self) -> None:
        """Also removes folders of processes that are gone."""
        self.path = _new_folder()

    def save(self, array: np.ndarray) -> str:
        """A new file with the array. Raises StorageError."""
        handle, path = tempfile.mkstemp(suffix=".npy", dir=self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, array, allow_pickle=False)
        except OSError as error:
            raise StorageError(f"cannot write arrays to {self.path}: {error.strerror or error}") from error
        return path

    def forget(self, paths: Iterable[str | None]) -> None:
        """Remove files."""
        for path in paths:
            if path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


class Inputs:
    """Prepares workloads; keeps those last used."""

    def __init__(self, folder: Folder, oracle: Oracle, seed: int) -> None:
        self._folder, self._oracle, self._seed = folder, oracle, seed
        self._kept: OrderedDict[Workload, Prepared] = OrderedDict()
        self._lock = Lock()

    def of(self, workload: Workload) -> Prepared:
        """Inputs and answers of a workload. Safe to call from many threads. Raises StorageError, and what the oracle raises."""
        with self._lock:
            if workload not in self._kept:
                self._make_room()
                self._kept[workload] = self._prepare(workload)
            self._kept.move_to_end(workload)
            return self._kept[workload]

    def _prepare(self, workload: Workload) -> Prepared:
        arrays = random_inputs(workload, self._seed)
        expected = [np.ascontiguousarray(a) for a in self._oracle(workload, arrays)]
        files = [
            None if i in workload.constants else self._folder.save(to_layout(a, t.layout))
            for i, (a, t) in enumerate(zip(arrays, workload.inputs, strict=True))
        ]
        answers = [self._folder.save(a) for a in expected]
        message = {"op": "workload", "workload": workload.to_json(), "inputs": files, "expected": answers}
        constants = tuple(arrays[i] for i in workload.constants)
        return Prepared(constants, message, sum(a.nbytes for a in (*arrays, *expected)))

    def _make_room(self) -> None:
        while self._kept and sum(p.nbytes for p in self._kept.values()) > _KEEP:
            _, oldest = self._kept.popitem(last=False)
            self._folder.forget((*oldest.message["inputs"], *oldest.message["expected"]))


def random_inputs(workload: Workload, seed: int) -> list[np.ndarray]:
    """Logical inputs, the same for the same workload and seed. Weights are scaled so that results are of order one."""
    digest = blake2b(f"{seed}:{workload.key}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    scale = reduction_length(workload) ** -0.5 if workload.op in ("conv", "gemm", "matmul") else 1.0
    return [_random(rng, t.dtype, t.shape, scale if i == 1 else 1.0) for i, t in enumerate(workload.inputs)]


def _random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if "int" in dtype:
        return rng.integers(0, 100, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(numpy_dtype(dtype))


def _new_folder() -> Path:
    shared = Path("/dev/shm")
    roomy = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > _ROOM
    root = shared if roomy else Path(tempfile.gettempdir())
    for old in root.glob("wpk-measure-*"):
        with contextlib.suppress(OSError, ValueError):
            if old.stat().st_uid == os.getuid() and not _alive(int(old.name.split("-")[2])):
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"wpk-measure-{os.getpid()}-", dir=root))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
