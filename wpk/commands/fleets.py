"""``wpk worker``."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from wpk.core.target import host_target
from wpk.fleet.bench import LocalBench
from wpk.fleet.security import Tls, need_distributed
from wpk.fleet.worker import serve
from wpk.measure.toolchain import find_compiler
from wpk.providers.registry import providers as named_providers
from wpk.settings import load_settings


def work(address: str, threads: int | None, jobs: int, build_only: bool, tls: Tls, out: Console) -> None:
    """Serve the scheduler at ``address`` until it, or Ctrl-C, ends that."""
    need_distributed()
    settings = load_settings()
    target = host_target(threads or settings.threads)
    compiler = find_compiler(settings.cc)
    bench = LocalBench(target, settings.cache, compiler, named_providers(), not build_only)
    what = f"builds, {jobs} at once" if build_only else f"measures for {target.fingerprint}, and builds in between"
    out.print(Text(f"worker of {address}: {what}"))
    out.print(Text(f"wpk {bench.facts.wpk}; {compiler.version}; {bench.facts.machine}", style="dim"))
    serve(address, bench, jobs, tls)
    out.print(Text("done"))
