"""The tuner on a measurer of several devices: more is under way, nothing is lost, results come in the order asked for."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tuning_fakes import LIB, VERSIONS, Sim, SimMeasurer, answer, seconds, workload

from wpk.core.result import Config, Measurement, config_key
from wpk.core.workload import Workload
from wpk.providers.protocol import Provider
from wpk.tuning.clock import Clock
from wpk.tuning.flight import Batch, Flight
from wpk.tuning.log import TuningLog
from wpk.tuning.tasks import Task
from wpk.tuning.tuner import Tuned, TuneOptions, tune

TASKS = [Task(workload(8 * (i + 1)), (f"n{i}",)) for i in range(3)]


@dataclass
class Eager(SimMeasurer):
    """Begins when asked, as a fleet does; counts what is under way."""

    slots: int = 4
    under_way: int = 0
    most: int = 0
    dropped: int = 0
    steps: list[int] = field(default_factory=list)

    def measure_each(  # type: ignore[override]
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> "Results":
        self.asked += [(workload.key, provider.name, config_key(c)) for c in configs]
        self.under_way += len(configs)
        self.most = max(self.most, self.under_way)
        return Results(self, [answer(seconds(workload, provider.name, c)) for c in configs])


@dataclass
class Results(Iterator[Measurement]):
    """Measurements under way."""

    owner: Eager
    left: list[Measurement]

    def __next__(self) -> Measurement:
        if not self.left:
            raise StopIteration
        self.owner.under_way -= 1
        self.owner.steps.append(1)
        return self.left.pop(0)

    def close(self) -> None:
        self.owner.dropped += len(self.left)
        self.owner.under_way -= len(self.left)
        self.left = []


def run(measurer: Eager, budget: float | None = None, trials: int = 40) -> tuple[Tuned, TuningLog]:
    log, clock = TuningLog(None), Clock(lambda: 0.1 * len(measurer.steps), lambda: "t")
    options = TuneOptions(budget, trials=trials, strategy="genetic", batch=6)
    return tune(TASKS, (Sim(), LIB), measurer, log, VERSIONS, options, clock=clock), log


def test_as_many_trials_and_more_under_way() -> None:
    measurer = Eager()
    tuned, log = run(measurer)
    counts = Counter(key for key, _, _ in measurer.asked)
    assert set(counts.values()) == {40} and len(set(measurer.asked)) == 120
    assert [r.key for r in log.records if r.stage == "search"] == measurer.asked, "in the order asked for"
    assert 4 * 2 <= measurer.most <= 4 * 2 + 2 * 6 and measurer.under_way == measurer.dropped == 0
    assert tuned.why == "done"


def test_one_device_has_one_batch_at_a_time() -> None:
    one, plain = Eager(slots=1), SimMeasurer()
    run(one)
    tune(TASKS, (Sim(), LIB), plain, TuningLog(None), VERSIONS, TuneOptions(trials=40, strategy="genetic", batch=6))
    assert one.most <= 6 and one.asked[:6] == plain.asked[:6]


def test_the_same_results_give_the_same_proposals() -> None:
    one, two = Eager(), Eager()
    assert list(run(one)[1].records) == list(run(two)[1].records) and one.asked == two.asked


def test_when_time_is_up_the_rest_is_given_up() -> None:
    measurer = Eager()
    tuned, log = run(measurer, budget=4.0)
    assert tuned.why == "budget" and measurer.under_way == 0 and measurer.dropped > 0
    assert len(measurer.asked) == measurer.dropped + len([r for r in log.records if r.stage == "search"])


def test_flight() -> None:
    flight: Flight[str] = Flight()
    one, two = "one", "two"
    assert not flight.full(1) and not flight.full(4)
    flight.add(Batch(one, [{}] * 6, iter(()), 0.0))
    assert flight.full(1) and not flight.full(2), "what is behind the oldest keeps the devices busy"
    flight.add(Batch(two, [{}] * 4, iter(()), 0.0))
    assert flight.full(2) and not flight.full(3)
    assert flight.configs(one) == 6 and flight.configs(one, two) == 10
    assert flight.oldest().arm == one and len(flight) == 1
    flight.drop()
    assert len(flight) == 0
