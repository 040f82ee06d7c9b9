"""The timing protocol: how many samples, how long, when to give up. The native runtime carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil, sqrt
from time import perf_counter

from wpk.runtime.native_api import TimingSpec

#: A candidate slower than this many times the best so far is not worth more samples.
HOPELESS = 2.0

#: Slow candidates may take longer than ``max_seconds`` to give a few samples, but never this long (seconds).
_LONGEST = 3.0


@dataclass(frozen=True)
class Timing:
    """How to time. A sample is the mean of as many calls as last ``min_sample`` seconds.

    Stops when the interval of the median is within ``target_spread`` of it, or after ``max_samples`` or ``max_seconds``.
    """

    warmup: int = 2
    min_samples: int = 5
    max_samples: int = 60
    max_seconds: float = 0.04
    target_spread: float = 0.01
    min_sample: float = 20e-6

    def glance(self, limit: float) -> Timing:
        """A few calls, enough to tell the hopeless when the best known takes ``limit`` seconds."""
        return replace(self, warmup=0, min_samples=3, max_samples=3, max_seconds=50 * limit, min_sample=0.0)

    def in_full(self, once: float) -> Timing:
        """The whole protocol for a candidate that takes about ``once`` seconds: a slow one gets time for a few samples."""
        return replace(self, max_seconds=max(self.max_seconds, min(7 * once, _LONGEST)))

    def native(self) -> TimingSpec:
        """The form the native timing loop takes."""
        return TimingSpec(reserved=0, hopeless=0.0, **asdict(self))


#: The protocol for GPUs, whose clock is coarser and whose kernels are shorter: samples of many calls in one graph.
GPU_TIMING = Timing(min_sample=300e-6, max_seconds=0.05)


def time_calls(call: Callable[[], object], how: Timing) -> list[float]:
    """The same protocol in Python, for calls that the native loop cannot make. Samples in seconds a call."""
    start = perf_counter()
    once = _seconds(call, 1)
    for _ in range(how.warmup):
        if perf_counter() - start >= how.max_seconds / 4:
            break
        once = min(once, _seconds(call, 1))
    calls = calls_of_sample(how, once)
    return collect(lambda: _seconds(call, calls), how, start)


def calls_of_sample(how: Timing, once: float) -> int:
    """How many calls that take ``once`` seconds make a sample."""
    return max(ceil(how.min_sample / max(once, 1e-8)), 1) if once < how.min_sample else 1


def collect(sample: Callable[[], float], how: Timing, start: float) -> list[float]:
    """Samples until the protocol is content; ``start`` is when it began, by :func:`time.perf_counter`."""
    samples: list[float] = []
    while not samples or not _finished(how, samples, perf_counter() - start):
        samples.append(sample())
    return samples


def _finished(how: Timing, samples: list[float], elapsed: float) -> bool:
    n = len(samples)
    if n >= how.max_samples or elapsed >= how.max_seconds:
        return True
    return n >= how.min_samples and n % 4 == 0 and _halfwidth(samples) <= how.target_spread


def _halfwidth(samples: list[float]) -> float:
    """Half-width of the median's interval, relative: a robust standard error from the interquartile range."""
    s, n = sorted(samples), len(samples)
    return 0.93 * (s[3 * n // 4] - s[n // 4]) / (s[n // 2] * sqrt(n)) if s[n // 2] > 0 else 0.0


def _seconds(call: Callable[[], object], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - start) / calls
