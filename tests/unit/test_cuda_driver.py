"""The driver as CudaDevice calls it: what arrives in a libcuda of our own that keeps the driver's rules for arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="no gcc on Linux"),
    pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed"),
]

#: what CudaDevice asks of PyCUDA to begin with
PYCUDA = """
import sys, types
import numpy as np
class Context:
    loud = False
    def push(self): pass
    def detach(self):
        if Context.loud: print("let go")
    @staticmethod
    def pop(): pass
class Device:
    def __init__(self, index): pass
    count = staticmethod(lambda: 1)
    name = lambda self: "double"
    retain_primary_context = lambda self: Context()
class Stream:
    made = 0
    def __init__(self, flags):
        Stream.made += 1
        self.handle = 0x1000 * Stream.made
pycuda, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
driver.init, driver.Device, driver.Stream, driver.Context = (lambda: None), Device, Stream, Context
driver.pagelocked_empty = np.empty
pycuda.driver = driver
sys.modules.update({"pycuda": pycuda, "pycuda.driver": driver})
"""

RUN = """
from wpk.core.launch import Launch, TensorMap
from wpk.runtime.cuda.device import Binary, Call, Span
from wpk.runtime.cuda.driver import CudaDevice
def call(symbol, *maps):
    spans = Span(0x10000, 4096), Span(0x20000, 4096)
    launch = Launch(symbol, (4, 3, 2), (384, 1, 1), 200 << 10)
    return Call(Binary(symbol, b"\\x7fELF cubin"), (launch,), maps, spans, Span(0x30000, 4096), 1)
device = CudaDevice()
plain = TensorMap(0, "bfloat16", (40, 80), (80,), (64, 32), 128)
apart = TensorMap(2, "tf32", (32, 9, 9, 2), (128, 1152, 10368), (32, 8, 4, 1), 128, 256, (1, 2, 2, 1))
"""


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the double."""
    source, folder = Path(__file__).parents[1] / "libcuda_double.c", tmp_path_factory.mktemp("driver")
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


def printed(libcuda: Path, code: str) -> list[str]:
    """What the driver saw while ``code`` ran."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libcuda)}
    done = subprocess.run(
        [sys.executable, "-c", PYCUDA + RUN + code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_a_bound_call_gives_to_the_driver(libcuda: Path) -> None:
    """Pointers, workspace and maps in the kernel's order, more shared memory asked for before, boxes as TMA counts them."""
    found = printed(libcuda, "device.bind(call('k_3_2', plain, apart))(0x77)\n")
    assert found == [
        "module \x7fELF cub",
        "encode 9 at 0x10000: 40:64/1 (80) 80:32/1, 0 3 2 0",
        "encode 11 at 0x30100: 32:32/1 (128) 9:16/2 (1152) 9:8/2 (10368) 2:1/1, 0 3 2 0",
        "launch 4,3,2 of 384,1,1 on 0x77, 204800: 0x10000 0x20000 0x30000 map 2 127 map 4 127",
    ]


def test_maps_of_many_calls_are_aligned(libcuda: Path) -> None:
    """Objects of cuda-bindings lie where Python puts them; the driver wants 128 bytes."""
    found = printed(libcuda, "for i in range(20): device.bind(call('k_3_1', plain))(0x77)\n")
    assert sum(line.startswith("launch") for line in found) == 20


def test_what_the_driver_refuses_is_told(libcuda: Path) -> None:
    wide = "replace(plain, box=(128, 32))"
    code = f"from dataclasses import replace\ntry: device.bind(call('k_3_1', {wide}))\nexcept Exception as e: print(e)\n"
    assert printed(libcuda, code)[-1].startswith("CUDA_ERROR_INVALID_VALUE: the driver refuses TensorMap(")


def test_a_recording_puts_branches_on_streams(libcuda: Path) -> None:
    """The second stream enters after the first's beginning; the first waits for it before the third step, and at the end."""
    code = "run = device.bind(call('k_3_0'))\ng = device.record([run, run, run], [(), (), (0, 1)])\ng.launch(device.stream)\n"
    found = [line.split(",")[0] for line in printed(libcuda, code)[1:]]
    assert found == [
        "capture on 0x1000", "launch 4", "0x2000 waits", "launch 4", "0x1000 waits", "launch 4", "0x1000 waits",
        "captured on 0x1000",
    ]  # fmt: skip


def test_the_context_is_let_go_of_after_all_else(libcuda: Path) -> None:
    """Left to PyCUDA's destructor it would be ended, though torch uses it too."""
    code = "from weakref import finalize\nContext.loud = True\nclass R: pass\nr = R()\nfinalize(r, print, 1)\n"
    assert printed(libcuda, code)[-2:] == ["1", "let go"]


def test_pycuda_finds_libcurand_among_the_packages(libcuda: Path) -> None:
    """The linker looks for it elsewhere; a second import succeeds once the library is loaded."""
    code = """
import types, wpk.runtime.cuda.driver as tested
loaded, pathfinder = [], types.ModuleType("cuda.pathfinder")
pathfinder.load_nvidia_dynamic_lib = loaded.append
def import_module(name):
    if name == "pycuda.driver" and not loaded:
        raise ImportError("libcurand.so.10: cannot open shared object file")
    return pathfinder if name == "cuda.pathfinder" else driver
tested.import_module = import_module
assert tested._pycuda() is driver
print(loaded)
"""
    assert printed(libcuda, code)[-1] == "['curand']"


def test_what_goes_ahead_is_not_timed(libcuda: Path) -> None:
    """The device is busy with it while the work is put on the stream, which the events would count otherwise."""
    code = """
class Event:
    def record(self, stream): print("event")
    def synchronize(self): print("waits")
    def time_since(self, begin): return 1.0
driver.Event = Event
print(device.elapsed(lambda stream: print("work"), lambda stream: print("ahead")))
"""
    assert printed(libcuda, code) == ["ahead", "event", "work", "event", "waits", "0.001"]
