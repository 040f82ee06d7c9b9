"""What measuring a candidate gives: plain data that crosses processes and goes into the tuning log."""

from dataclasses import dataclass
from statistics import median

#: The kinds of failure inside a search. None of them ever ends a run.
FAILURES = ("invalid", "compile", "launch", "timeout", "crash", "memory", "wrong")

Config = dict[str, int | str | bool]


def config_key(config: Config) -> str:
    """A canonical text of a config: equal text, equal config."""
    return ",".join(f"{k}={config[k]}" for k in sorted(config))


@dataclass(frozen=True)
class Measurement:
    """The outcome of one candidate: samples in seconds, or a failure kind with its detail; never both."""

    samples: tuple[float, ...] = ()
    failure: str | None = None
    detail: str = ""
    error: float = 0.0  # relative L2 error against the oracle
    tolerance: float = 0.0
    build_s: float = 0.0
    measure_s: float = 0.0
    cache_state: str = "warm"  # "warm", or "cold-weights": constants rotate through more memory than L3
    accuracy: str = "direct"  # the algorithm's class of rounding error, which sets the tolerance

    @property
    def ok(self) -> bool:
        """True when the candidate was right and was timed."""
        return self.failure is None and bool(self.samples)

    @property
    def time(self) -> float:
        """Median seconds; infinity for a failure."""
        return median(self.samples) if self.ok else float("inf")

    @property
    def spread(self) -> float:
        """Relative spread: interquartile range over median; 0 with fewer than four samples."""
        if len(self.samples) < 4:
            return 0.0
        s = sorted(self.samples)
        return (s[(3 * len(s)) // 4] - s[len(s) // 4]) / self.time
