"""Nothing lost: tuning killed at random moments leaves a log that loads, and resuming measures nothing that it holds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from tuning_fakes import LIB, VERSIONS, Sim, SimMeasurer, workload

from wpk.tuning.log import TuningLog, read_log
from wpk.tuning.tasks import Task
from wpk.tuning.tuner import TuneOptions, tune

HERE = Path(__file__).parent

_TUNE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import tuning_fakes
from pathlib import Path
from test_tuning_kill import tune_on
print("ready", flush=True)
tune_on(Path(sys.argv[2]), lambda: time.sleep(0.001))
"""

_MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from measure_fakes import Fakes, add_relu, config, oracle
from wpk.core.target import host_target
from wpk.measure.measurer import Measurer, cpu_measurer
from wpk.measure.toolchain import find_compiler
measurer = cpu_measurer(host_target(1), Path(sys.argv[2]), find_compiler(), oracle)
assert measurer.measure(add_relu(), Fakes(), [config()])[0].ok
print(measurer._process.popen.pid, measurer._folder.path, flush=True)
measurer.measure(add_relu(), Fakes(), [config("hang")])
"""


def tune_on(log: Path, before) -> SimMeasurer:  # type: ignore[no-untyped-def]
    """Tune two tasks of 120 trials with a slow simulated measurer."""
    measurer = SimMeasurer(before=before)
    tasks = [Task(workload(8), ("a",)), Task(workload(16), ("b",))]
    tune(tasks, (Sim(), LIB), measurer, TuningLog(log), VERSIONS, TuneOptions(trials=120, batch=4))
    return measurer


def start(text: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", text, str(HERE), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_ten_times_the_log_loads_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    path, rng, counts = tmp_path / "log", Random(7), [0]
    for _ in range(10):
        process = start(_TUNE, path)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.005, 0.08))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), "it failed by itself"
        counts.append(len(read_log(path).records) if path.exists() else 0)
    assert counts == sorted(counts) and counts[-1] > 0
    held = [r.key for r in read_log(path).records]
    assert len(set(held)) == len(held), "no run measured what an earlier one had logged"
    resumed = tune_on(path, lambda: None)
    assert not set(held) & set(resumed.asked)
    assert len(resumed.asked) == 240 - len(held)
    assert sorted(r.number for r in read_log(path).records if r.workload == workload(8))[:120] == list(range(120))


def test_a_torn_write_at_every_byte_of_the_last_line_loads(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tune([Task(workload(8))], (Sim(side=2), LIB), SimMeasurer(), TuningLog(path), VERSIONS)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    last = len(data) - len(lines[-1])
    for end in range(last, len(data)):
        path.write_bytes(data[:end])
        contents = read_log(path)
        assert len(contents.records) == len(lines) - 1 and len(contents.warnings) <= 1


def test_a_killed_parent_leaves_neither_worker_nor_files(tmp_path: Path) -> None:
    process = start(_MEASURE, tmp_path)
    assert process.stdout is not None
    worker, folder = process.stdout.readline().split()
    time.sleep(0.3)  # the worker is inside a kernel that never ends
    assert Path(folder).exists() and _alive(int(worker))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for _ in range(100):
        if not Path(folder).exists() and not _alive(int(worker)):
            return
        time.sleep(0.05)
    raise AssertionError(f"left behind: {folder if Path(folder).exists() else f'process {worker}'}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False
