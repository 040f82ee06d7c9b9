"""The explanation as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from wpk.core.result import config_key
from wpk.report.explain import Row, duration, rival_text, rivals_short, summary, telling
from wpk.report.peaks import Peaks
from wpk.runtime.plan import Plan


def page(
    plan: Plan, found: Sequence[Row], peaks: Peaks | None = None, sources: Sequence[tuple[str, str]] = ()
) -> str:
    """HTML for ``plan``: totals, providers, one expandable row a step. ``sources`` are (symbol, C text) pairs."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("wpk.report").joinpath("report.html.j2").read_text())
    times = [row.seconds for row in found if row.seconds is not None]
    return template.render(
        plan=plan, rows=found, peaks=peaks, providers=summary(found), total=sum(times) if times else None,
        code=dict(sources), symbols={s.name: s.symbol for s in plan.steps}, longest=max(times, default=None),
        duration=duration, rival_text=rival_text, config_key=config_key, telling=telling,
        rivals_short=rivals_short, contract=(plan.meta or {}).get("contract"),
    )  # fmt: skip
