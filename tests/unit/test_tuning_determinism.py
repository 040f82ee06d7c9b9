"""The same seed and the same simulated measurements give the same proposals, records and plan: byte for byte, in another process
with other hash seeds too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wpk.search.strategy import STRATEGIES

HERE = Path(__file__).parent
#: Strategies whose results are planned too: that builds kernels.
PLANNED = ("auto",)

_RUN = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_tuning_determinism import run
run(sys.argv[3], sys.argv[4:])
"""


def run(model: str, strategies: list[str]) -> None:
    """Print, for each strategy, a digest of the proposals, the log and the hash of the plan."""
    from wpk.planner.plan import plan_model
    from wpk.stages import Options, best_graph, graph_tasks, open_shop, read_source

    options = Options(providers=("generated", "onnxruntime"), threads=2)
    shop = open_shop(options)
    source = read_source(model, options, shop)
    tasks = graph_tasks(source.graphs, shop.target)[:4]
    found = {}
    for strategy in strategies:
        asked, log, results = _tune(strategy, tasks, shop)
        found[strategy] = [asked, log, ""]
        if strategy in PLANNED:
            graph = best_graph(source.graphs, results, shop)
            found[strategy][2] = plan_model(graph, results, shop.target, shop.providers, shop.tools).plan.hash
    print(json.dumps(found))


def _tune(strategy, tasks, shop):  # type: ignore[no-untyped-def]
    """Simulated measuring: a time is a digest of what is measured, and the clock moves by a thousandth each time it is read."""
    from hashlib import sha256
    from itertools import count
    from tempfile import TemporaryDirectory

    from tuning_fakes import SimMeasurer, answer

    from wpk.core.result import config_key
    from wpk.tuning.clock import Clock
    from wpk.tuning.log import TuningLog
    from wpk.tuning.tuner import TuneOptions, tune

    def seconds(workload, provider, config):  # type: ignore[no-untyped-def]
        digest = sha256(f"{workload.key} {provider} {config_key(config)}".encode()).digest()
        return 1e-5 * (1 + digest[0] / 64)

    class Digests(SimMeasurer):
        def measure_each(self, workload, provider, configs, limit=None):  # type: ignore[no-untyped-def]
            for config in configs:
                self.asked.append((workload.key, provider.name, config_key(config)))
                yield answer(seconds(workload, provider.name, config))

        def measure_again(self, workload, candidates, rounds=5):  # type: ignore[no-untyped-def]
            return [answer(seconds(workload, p.name, c) * 1.01) for p, c in candidates]

    ticks, measurer = count(), Digests(target=shop.target)
    clock = Clock(lambda: next(ticks) * 1e-3, lambda: "2026-01-01T00:00:00Z")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        options = TuneOptions(trials=16, strategy=strategy, seed=3)
        tuned = tune(tasks, shop.providers, measurer, TuningLog(path), shop.versions, options, clock=clock)
        return sha256(repr(measurer.asked).encode()).hexdigest(), sha256(path.read_bytes()).hexdigest(), tuned.results


@pytest.fixture(scope="module")
def twice(small_onnx: Path) -> list[dict[str, list[str]]]:
    """What two processes say, at the same time, under other hash seeds."""
    names = [s for s in STRATEGIES if s != "exhaustive"]
    command = [sys.executable, "-c", _RUN, str(HERE), str(HERE.parent), str(small_onnx), *names]
    both = [
        subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True) for seed in "12"
    ]
    said = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    return [json.loads(text) for text in said]


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "exhaustive"])
def test_byte_for_byte(twice: list[dict[str, list[str]]], strategy: str) -> None:
    one, two = (found[strategy] for found in twice)
    assert one[0] == two[0], "proposals"
    assert one[1] == two[1], "the log"
    assert one[2] == two[2], "the plan"


def test_strategies_differ(twice: list[dict[str, list[str]]]) -> None:
    """The digests mean something."""
    assert all(twice[0][s][2] for s in PLANNED)
    assert len({tuple(v) for v in twice[0].values()}) >= 3
