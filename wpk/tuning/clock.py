"""The time as tuning sees it: a part that tests and simulations replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from wpk.tuning.record import utc_stamp


@dataclass(frozen=True)
class Clock:
    """``now``: seconds since some moment, never going back. ``stamp``: the date and time for records, ISO 8601, UTC."""

    now: Callable[[], float] = monotonic
    stamp: Callable[[], str] = utc_stamp
