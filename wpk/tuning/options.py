"""What may be set of a tuning run; ``configs/effort/*.toml`` has the values that users choose among."""

from __future__ import annotations

from dataclasses import dataclass

from wpk.core.errors import UsageError
from wpk.search.prior import ScreenOptions
from wpk.search.rl import RlOptions
from wpk.search.strategy import STRATEGIES


@dataclass(frozen=True)
class TuneOptions:
    """``budget``: seconds of wall clock, None for as long as it takes. ``trials``: most candidates of a task.

    ``batch``: candidates of one arm at a time. ``library_configs``: most configs of a library tried. ``finalists``: most rivals
    re-timed in turns, those within ``tie`` of the best, besides other providers' best within the factor ``rival``; ``reserve``:
    share of the budget kept for that.
    ``batch_seconds``: about how long a batch may take. ``noise``: the share of the model's time below which gains are not worth
    a search, all tasks together; ``roof``: a task whose best is within this share of the machine's roof is not searched.
    ``rl``: the learner's hyper-parameters. ``screen``: how kernels are looked at before they are built, None for not at all.
    """

    budget: float | None = None
    trials: int = 200
    strategy: str = "genetic"
    seed: int = 0
    batch: int = 8
    batch_seconds: float = 2.0
    library_configs: int = 6
    finalists: int = 4
    tie: float = 0.1
    rival: float = 1.5
    reserve: float = 0.12
    noise: float = 0.005
    roof: float = 0.05
    rl: RlOptions | None = None
    screen: ScreenOptions | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy {self.strategy!r}: expected one of {', '.join(STRATEGIES)}")
