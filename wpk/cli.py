"""The command line. Each command is a thin layer over :mod:`wpk.api` and :mod:`wpk.report`.

Exit codes: 0 done · 1 a check failed · 2 wrong usage · 3 model · 4 feed · 5 artifact · 6 tuning log · 7 toolchain · 8 storage
· 9 fleet · 10 GPU · 11 its memory · 70 a bug in wpk · 130 interrupted with nothing to save. Errors are one line on stderr;
``--debug`` adds the traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wpk import __version__
from wpk import settings as levels
from wpk.core.errors import InternalError, UsageError, WpkError

app = typer.Typer(
    name="wpk",
    help="An auto-tuning inference compiler: ONNX in, the fastest correct program for this machine out.",
    epilog="Every command takes --debug, which shows tracebacks. Exit codes are listed in the README.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
logs = typer.Typer(name="log", help="Look into tuning logs, join, clean, draw them, learn from them.")
app.add_typer(logs)

#: What a shell calls a process ended by Ctrl-C.
INTERRUPTED = 130

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="the ONNX model", show_default=False)]
Artifact = Annotated[Path, typer.Argument(metavar="MODEL.wpk", help="a compiled model", show_default=False)]
LogFile = Annotated[Path, typer.Argument(metavar="LOG.jsonl", help="a tuning log", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="where to save; default: MODEL.wpk", show_default=False)
]
Log = Annotated[
    Path | None,
    typer.Option(
        "--log", help="tuning log to resume and append to; default: beside the output", show_default=False
    ),
]
Providers = Annotated[
    str | None, typer.Option(help="comma-separated; default: all that are installed", show_default=False)
]
Threads = Annotated[int | None, typer.Option(min=1, help="default: the cores there are", show_default=False)]
Batch = Annotated[
    int | None, typer.Option(min=1, help="value of a symbolic first dimension", show_default=False)
]
Shape = Annotated[
    list[str] | None,
    typer.Option(help="NAME=1x3x224x224, for symbolic shapes; repeatable", show_default=False),
]
Page = Annotated[
    Path | None, typer.Option("--html", help="also write the explanation as a page", show_default=False)
]
Tls = Annotated[
    Path | None, typer.Option(help="of a cluster with TLS: a PEM file; all three belong together", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print only errors")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"wpk {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit"),
    ] = False,
) -> None:
    """Options of every command."""


@app.command("compile")
def compile_command(
    model: Model,
    output: Output = None,
    budget: Annotated[
        str | None, typer.Option(help="wall-clock time for tuning, such as 60s or 5m, or none", show_default=False)
    ] = None,
    effort: Annotated[
        str, typer.Option(help="budget and strategy in one word: quick, normal, thorough")
    ] = "normal",
    strategy: Annotated[
        str | None, typer.Option(help="auto, rl, genetic, random or exhaustive", show_default=False)
    ] = None,
    log: Log = None,
    providers: Providers = None,
    threads: Threads = None,
    batch: Batch = None,
    shape: Shape = None,
    target: Annotated[
        str, typer.Option(help="cpu, cuda (the GPU here), or cuda:sm_80, cuda:sm_90a ... with --no-measure")
    ] = "cpu",
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="by what logs know and first guesses; needs no such machine")
    ] = False,
    seed: Annotated[int, typer.Option(help="of the search and of the check's inputs")] = 0,
    precision: Annotated[
        str, typer.Option(help="fp32 (strict), tf32, fp16 or bf16, on GPUs: as many nodes as --max-error allows")
    ] = "fp32",
    max_error: Annotated[
        float | None,
        typer.Option(
            help="largest relative L2 error of the whole model; default: fp32 1e-4, tf32 and fp16 5e-3, bf16 4e-2",
            show_default=False,
        ),
    ] = None,
    trace_fusion: Annotated[
        bool, typer.Option("--trace-fusion", help="say which fusions fired and why others did not")
    ] = False,
    html: Page = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="measure on the workers of a Dask scheduler", show_default=False),
    ] = None,
    tls_ca: Tls = None,
    tls_cert: Tls = None,
    tls_key: Tls = None,
    quiet: Quiet = False,
) -> None:
    """Tune MODEL.onnx for this machine and save the fastest correct program."""
    from wpk.commands import compiling
    from wpk.fleet import security
    from wpk.stages import Options

    level = levels.effort(effort)
    options = Options(
        level.budget if budget is None else levels.parse_budget(budget), strategy or level.strategy, names(providers), threads,
        batch, shapes(shape), seed, level.trials, max_error, cluster, security.Tls(tls_ca, tls_cert, tls_key), level.rl,
        target, precision, level.screen,
    )  # fmt: skip
    if no_measure:
        compiling.cross_compile(model, options, output, log, trace_fusion, console(quiet))
        return
    compiling.compile_model(model, options, output, log, trace_fusion, html, console(quiet))


@app.command()
def replay(
    log: LogFile,
    model: Model,
    output: Output = None,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="use defaults where the log has no entry")
    ] = False,
    providers: Providers = None,
    threads: Threads = None,
    batch: Batch = None,
    shape: Shape = None,
    quiet: Quiet = False,
) -> None:
    """Build the program that LOG.jsonl describes; nothing is measured."""
    from wpk.commands import compiling
    from wpk.stages import Options

    options = Options(providers=names(providers), threads=threads, batch=batch, shapes=shapes(shape))
    compiling.replay_log(log, model, options, output, not best_effort, console(quiet))


@app.command()
def run(
    artifact: Artifact,
    feeds: Annotated[
        list[Path] | None, typer.Argument(metavar="[FEED.npy|FEEDS.npz]...", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".npz, or .npy for one output", show_default=False)
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="seeded random inputs instead of files")] = False,
    seed: Annotated[int, typer.Option(help="of --random")] = 0,
    threads: Threads = None,
    emulate: Annotated[
        bool, typer.Option("--emulate", help="a model for GPUs, on the CPU: slow, and every access is checked")
    ] = False,
) -> None:
    """Run a compiled model on arrays from files."""
    from wpk.commands import inspecting

    inspecting.run_artifact(artifact, feeds or [], output, random, seed, threads, emulate, console(False))


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL.wpk|MODEL.onnx", show_default=False)],
    against: Annotated[str, typer.Option(help="onnxruntime, openvino or both, comma-separated")] = "",
    onnx: Annotated[
        Path | None, typer.Option(help="the ONNX model of MODEL.wpk, for --against", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="turns each engine takes")] = 8,
    threads: Threads = None,
    budget: Annotated[str, typer.Option(help="tuning time when MODEL.onnx is given")] = "15s",
    log: Log = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="also write the numbers", show_default=False)
    ] = None,
) -> None:
    """Time a model side by side with other engines, in turns."""
    from wpk.commands import benching

    benching.bench_model(model, against, onnx, rounds, threads, budget, log, json, console(False))


@app.command()
def explain(
    artifact: Artifact,
    node: Annotated[str | None, typer.Argument(help="everything about one node", show_default=False)] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="all steps and all rivals, not only the slowest 20")
    ] = False,
    html: Page = None,
    threads: Threads = None,
) -> None:
    """Say for each node what was chosen, its time, its rivals, its share and how near the roofline it is."""
    from wpk.commands import inspecting

    inspecting.explain_artifact(artifact, node, everything, html, threads, console(False))


@app.command()
def show(
    artifact: Artifact,
    node: Annotated[str, typer.Argument(help="a node of the plan or of the ONNX model", show_default=False)],
    source: Annotated[bool, typer.Option("--source", help="only the generated C")] = False,
) -> None:
    """Show one node: its step, buffers and generated source."""
    from wpk.commands import inspecting

    inspecting.show_node(artifact, node, source, console(False))


@app.command()
def worker(
    address: Annotated[str, typer.Argument(metavar="tcp://HOST:PORT", help="a Dask scheduler", show_default=False)],
    threads: Annotated[
        int | None, typer.Option(min=1, help="of the kernels measured; default: the cores there are", show_default=False)
    ] = None,
    build_only: Annotated[bool, typer.Option("--build-only", help="build for others, measure nothing")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="builds at once, with --build-only")] = 2,
    tls_ca: Tls = None,
    tls_cert: Tls = None,
    tls_key: Tls = None,
) -> None:
    """Work for a fleet: build candidates, and measure those for machines like this one. One worker a machine."""
    from wpk.commands import fleets
    from wpk.fleet.security import Tls as Files

    fleets.work(address, threads, jobs, build_only, Files(tls_ca, tls_cert, tls_key), console(False))


@app.command()
def doctor(
    log: Annotated[
        Path | None, typer.Option("--log", help="also look for stale entries in a log", show_default=False)
    ] = None,
    threads: Threads = None,
) -> None:
    """Say what wpk finds on this machine and what it misses."""
    from wpk.commands import logs

    raise typer.Exit(logs.examine_machine(log, threads, console(False)))


@logs.command("ls")
def log_ls(log: LogFile) -> None:
    """List the tasks of a log: measurements, failures, best time."""
    from wpk.commands import logs

    logs.list_log(log, console(False))


@logs.command("best")
def log_best(
    log: LogFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default: only show them", show_default=False)
    ] = None,
) -> None:
    """Show the best of each task and provider; with -o, keep only those: a small file that replays the same."""
    from wpk.commands import logs

    logs.best_of_log(log, output, console(False))


@logs.command("merge")
def log_merge(
    inputs: Annotated[list[Path], typer.Argument(metavar="LOG.jsonl...", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", show_default=False)],
) -> None:
    """Join logs into one; equal measurements are kept once."""
    from wpk.commands import logs

    logs.merge_logs(inputs, output, console(False))


@logs.command("gc")
def log_gc(log: LogFile) -> None:
    """Drop what no longer counts: entries of other library or generator versions, torn lines."""
    from wpk.commands import logs

    logs.clean_log(log, console(False))


@logs.command("export")
def log_export(
    log: LogFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default: standard output", show_default=False)
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="csv or json; default: by the output's name, else csv", show_default=False)
    ] = None,
) -> None:
    """Write all entries as a table with one row each."""
    from wpk.commands import logdata

    logdata.export_log(log, output, form, console(False))


@logs.command("train")
def log_train(
    inputs: Annotated[list[Path], typer.Argument(metavar="LOG.jsonl...", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", show_default=False)],
    what: Annotated[str, typer.Option("--what", help="policy, cost-model or both")] = "policy,cost-model",
    seed: Annotated[int, typer.Option(help="of the training")] = 0,
) -> None:
    """Train the search's policy and cost model on what was measured."""
    from wpk.commands import logdata

    logdata.train(inputs, output, seed, names(what) or (), console(False))


@logs.command("plot")
def log_plot(
    inputs: Annotated[list[Path], typer.Argument(metavar="LOG.jsonl...", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help=".png or .svg")] = Path("tuning.png"),
    by: Annotated[str, typer.Option(help="one curve for each provider, log or seed")] = "provider",
    task: Annotated[
        str | None, typer.Option(help="part of the name of the task whose space is shown", show_default=False)
    ] = None,
) -> None:
    """Draw how fast the search got good, and where in a space it looked."""
    from wpk.commands import logdata

    logdata.plot(inputs, output, by, task, console(False))


def names(text: str | None) -> tuple[str, ...] | None:
    """``a,b`` → names; None stays None."""
    return None if text is None else tuple(n.strip() for n in text.split(",") if n.strip())


def shapes(given: list[str] | None) -> dict[str, tuple[int, ...]]:
    """``NAME=1x3x224x224`` texts → shapes by name. Raises UsageError."""
    found = {}
    for text in given or ():
        name, _, dims = text.rpartition("=")
        if not name or not all(d.isdigit() for d in dims.split("x")):
            raise UsageError(f"shape {text!r}: expected NAME=1x3x224x224")
        found[name] = tuple(int(d) for d in dims.split("x"))
    return found


class PipeConsole(Console):
    """A console whose reader may go away: that ends the command, and is no error."""

    def on_broken_pipe(self) -> None:
        """Let :func:`run_command` decide, where rich would exit with 1."""
        raise BrokenPipeError


def console(quiet: bool) -> Console:
    """Where results are printed; as wide as the terminal, or 120 columns in a pipe."""
    return PipeConsole(quiet=quiet, width=None if sys.stdout.isatty() else 120, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a documented code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run_command([a for a in given if a != "--debug"], debug="--debug" in given))


def run_command(arguments: list[str], debug: bool = False) -> int:
    """The exit code of one command line; errors become one line on stderr unless ``debug``."""
    try:
        debug = debug or levels.load_settings().debug
        code = app(arguments or ["--help"], prog_name="wpk", standalone_mode=False)
        sys.stdout.flush()
        return _fail("interrupted", code) if code == INTERRUPTED else code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader of our output went away, as `wpk … | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        return _fail(*_described(error))


def _described(error: Exception) -> tuple[str, int]:
    if isinstance(error, WpkError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # the command-line parser's own errors
        return f"{error.format_message()} (see wpk --help)", UsageError.exit_code
    if isinstance(error, MemoryError):
        return "out of memory", 1
    what = " ".join(str(error).split())
    return (
        f"internal error: {type(error).__name__}: {what} (a bug; --debug shows where)",
        InternalError.exit_code,
    )


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"wpk: {' '.join(message.split())}", file=sys.stderr)
    return code
