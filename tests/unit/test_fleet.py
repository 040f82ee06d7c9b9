"""Fleets: real schedulers and workers on loopback, each a process. Workers are killed while they measure."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from fleet_fakes import FACTS, Cluster, cluster
from tuning_fakes import LIB, TARGET, VERSIONS, Sim, SimMeasurer, workload

from wpk.core.errors import FleetError, UsageError
from wpk.core.result import Measurement
from wpk.core.target import Target, host_target
from wpk.fleet.client import Fleet, FleetOptions
from wpk.fleet.security import Tls
from wpk.fleet.wire import Facts, built_data, code_from, facts_from, measurement_from, target_from
from wpk.providers.protocol import Code, Source
from wpk.settings import shipped_target
from wpk.tuning.log import TuningLog, read_log
from wpk.tuning.tasks import Task
from wpk.tuning.tuner import TuneOptions, tune

HERE = Path(__file__).parent
TASKS = [Task(workload(8 * (i + 1)), (f"n{i}",)) for i in range(4)]
OPTIONS = TuneOptions(trials=24, tie=0.5)
PATIENT = FleetOptions(patience=30.0)


@pytest.fixture(scope="module")
def fleet_cluster() -> Iterator[Cluster]:
    with cluster() as made:
        made.start(2, 0.02)
        yield made


def connect(to: Cluster, patience: float = 30.0, target: Target = TARGET, facts: Facts = FACTS) -> Fleet:
    return Fleet(to.address, target, facts, FleetOptions(patience=patience))


def wait_for(fleet: Fleet, slots: int) -> None:
    deadline = time.monotonic() + 30
    while fleet.slots != slots:
        assert time.monotonic() < deadline, f"{fleet.slots} workers, not {slots}"
        time.sleep(0.1)


def test_a_fleet_finds_what_one_machine_finds(fleet_cluster: Cluster, tmp_path: Path) -> None:
    with connect(fleet_cluster) as fleet:
        wait_for(fleet, 2)
        tuned = tune(TASKS, (Sim(), LIB), fleet, TuningLog(tmp_path / "log"), VERSIONS, OPTIONS)
        records = read_log(tmp_path / "log").records
        resumed = tune(TASKS, (Sim(), LIB), fleet, TuningLog(tmp_path / "log"), VERSIONS, OPTIONS)
    searched = [r.key for r in records if r.stage == "search"]
    assert len(set(searched)) == len(searched) == 4 * 24 and tuned.measured == len(records)
    later = read_log(tmp_path / "log").records[len(records) :]
    assert resumed.reused == len(records) and all(r.stage == "final" for r in later)
    alone = tune(TASKS, (Sim(), LIB), SimMeasurer(), TuningLog(None), VERSIONS, OPTIONS)
    for task in TASKS:
        ours, theirs = (t.results.best(task.workload)[0][2].time for t in (tuned, alone))
        assert ours < 1.4 * theirs
        assert [r.measurement.time for r in tuned.results.records(task.workload) if r.stage == "final"]


def test_measurements_come_in_order_and_failures_are_values(fleet_cluster: Cluster) -> None:
    configs = [{"a": a, "b": 5} for a in range(16)]
    with connect(fleet_cluster) as fleet:
        found = list(fleet.measure_each(workload(8), Sim(), configs, 1e-3))
    assert found == list(SimMeasurer().measure_each(workload(8), Sim(), configs))
    assert [m.failure for m in found[14:]] == ["crash", "crash"] and found[11].time == pytest.approx(8e-5)


def test_a_worker_killed_while_it_measures_loses_nothing(tmp_path: Path) -> None:
    with cluster() as made:
        made.start(3, 0.05)
        with connect(made) as fleet:
            wait_for(fleet, 3)
            killer = threading.Thread(target=kill_some, args=(made,))
            killer.start()
            tune(TASKS, (Sim(), LIB), fleet, TuningLog(tmp_path / "log"), VERSIONS, OPTIONS)
            killer.join()
            wait_for(fleet, 2)
    counts = Counter(r.key for r in read_log(tmp_path / "log").records if r.stage == "search")
    assert len(counts) == 4 * 24 and set(counts.values()) == {1}
    assert all(r.measurement.ok or int(r.config["a"]) > 13 for r in read_log(tmp_path / "log").records)


def kill_some(made: Cluster) -> None:
    """Two of three die in the middle of measurements; one comes anew."""
    for pause in (0.42, 0.33):
        time.sleep(pause)
        made.kill()
    made.start(1, 0.05)


def test_what_does_not_fit_is_told(fleet_cluster: Cluster) -> None:
    with pytest.raises(FleetError, match=r"wpk: expected '0.2', found '0.1'"):
        connect(fleet_cluster, facts=replace(FACTS, wpk="0.2"))
    with pytest.raises(FleetError, match=r"compiler: expected 'cc 13', found 'cc 12'"):
        connect(fleet_cluster, facts=replace(FACTS, compiler="cc 13"))
    with pytest.raises(FleetError, match=r"worker tcp://.* lib: expected '4', found '3.1'; new: expected '1', found 'nothing'"):
        connect(fleet_cluster, facts=replace(FACTS, providers={"lib": "4", "new": "1"}))
    other = replace(TARGET, threads=1)
    with pytest.raises(FleetError, match=f"no worker measures for this machine .{other.fingerprint}.*{TARGET.fingerprint}"):
        connect(fleet_cluster, 0.2, other)
    with pytest.raises(FleetError, match=r"no scheduler answers at tcp://127.0.0.1:9"):
        Fleet("tcp://127.0.0.1:9", TARGET, FACTS, FleetOptions(patience=0.5))


def test_a_scheduler_without_workers_and_one_that_ends() -> None:
    with cluster() as made:
        with pytest.raises(FleetError, match="no wpk worker is there; start one on a machine like this"):
            connect(made, 0.2)
        made.start(1, 5.0, measures=True)
        with connect(made) as fleet:
            coming = fleet.measure_each(workload(8), Sim(), [{"a": 1, "b": 1}])
            made.scheduler.kill()
            with pytest.raises(FleetError, match="lost the scheduler"):
                next(coming)


_REAL = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from measure_fakes import Fakes
from wpk.core.target import host_target
from wpk.fleet.bench import LocalBench
from wpk.fleet.worker import serve
from wpk.measure.toolchain import find_compiler
measures = sys.argv[5] == "measures"
serve(sys.argv[3], LocalBench(host_target(1), Path(sys.argv[4]), find_compiler(), [Fakes()], measures), 2)
"""


def test_real_kernels_built_on_one_machine_and_measured_on_another(tmp_path: Path) -> None:
    from measure_fakes import Fakes, add_relu, config

    from wpk.fleet.bench import facts_of
    from wpk.measure.toolchain import find_compiler

    target = host_target(1)
    with cluster() as made:
        for kind in ("builds", "measures"):
            arguments = [str(HERE), str(HERE.parent), made.address, str(tmp_path / kind), kind]
            made.workers.append(subprocess.Popen([sys.executable, "-c", _REAL, *arguments]))
        facts = facts_of(target, find_compiler(), [Fakes()])
        with connect(made, target=target, facts=facts) as fleet:
            assert fleet.slots == 1
            ways = ("good", "wrong", "syntax", "null", "invalid")
            found = list(fleet.measure_each(add_relu(), Fakes(), [config(w) for w in ways]))
            rivals = fleet.measure_again(add_relu(), [(Fakes(), config()), (Fakes(), config(work=80))], 2)
    assert [m.failure for m in found] == [None, "wrong", "compile", "crash", "invalid"]
    assert found[0].build_s > 0 and len(found[0].samples) > 1
    assert [m.ok for m in rivals] == [True, True]
    assert list((tmp_path / "measures" / "build").glob("*.so"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
def test_tls(tmp_path: Path) -> None:
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=fleet -addext subjectAltName=IP:127.0.0.1 -keyout"
    subprocess.run([*command.split(), str(key), "-out", str(cert)], check=True, capture_output=True)
    ca.write_bytes(cert.read_bytes())
    tls = Tls(ca, cert, key)
    with cluster(tls) as made:
        made.start(1, 0.01)
        with Fleet(made.address, TARGET, FACTS, FleetOptions(tls, 30.0)) as fleet:
            assert made.address.startswith("tls://")
            assert next(fleet.measure_each(workload(8), Sim(), [{"a": 11, "b": 5}])).time == pytest.approx(8e-5)
        with pytest.raises(FleetError, match="no scheduler answers"):
            Fleet(made.address, TARGET, FACTS, FleetOptions(patience=1.0))


def test_tls_wants_all_three_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs all three"):
        Tls(ca=tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        Tls(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert Tls().security("client") is None


# Plain data


def test_messages_are_plain_data() -> None:
    code = Code("kernel", Source("text", "f", "avx512", 1, 2), None, (0, 1), "winograd")
    built = built_data(code, b"\x7fELF", "name.so", "", "", 0.5)
    assert code_from(json.loads(json.dumps({**built, "library": None}))["code"]) == code
    spec = Code("onednn", None, {"a": [1, 2]})
    assert code_from(json.loads(json.dumps(asdict(spec)))) == spec
    m = Measurement((1e-3, 2e-3), tolerance=1e-6, build_s=0.1, cache_state="cold-weights")
    assert measurement_from(json.loads(json.dumps(asdict(m)))) == m
    for target in (TARGET, shipped_target("h200-sm_90a")):
        assert target_from(json.loads(json.dumps(target.to_json()))) == target
    assert facts_from(json.loads(json.dumps(FACTS.to_data()))) == FACTS


def test_resources_tell_machines_and_versions_apart() -> None:
    mine = FACTS.measuring_needs({"lib"})
    assert set(mine) <= set(FACTS.offers(1)) and set(FACTS.building_needs("lib")) <= set(FACTS.offers(1))
    assert FACTS.offers(4)[FACTS.measuring] == 1.0, "one measurement at a time"
    for other in (
        replace(FACTS, fingerprint="x"), replace(FACTS, wpk="9"), replace(FACTS, compiler="x"), replace(FACTS, measures=False),
        replace(FACTS, providers={"lib": "9"}),
    ):  # fmt: skip
        assert not set(mine) <= set(other.offers(1))
    assert set(FACTS.building_needs("lib")) <= set(replace(FACTS, fingerprint="x", measures=False).offers(2)), "builds anywhere"
