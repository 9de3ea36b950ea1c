"""Between the scheduler's commands and the pure library: files in and out, errors for a person, progress, interruption."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gswarm.errors import GswarmError, InvalidError, RefusedError
from gswarm.names import near
from gswarm.scheduler import strategies
from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.formats import executions_of, plan_lines, problem_of, read_file
from gswarm.scheduler.plan import Execution
from gswarm.scheduler.planning import Planned, names, noisy_bound, outcome
from gswarm.scheduler.problem import Problem, ProblemError
from gswarm.scheduler.simulate import Record, Simulation, SimulationError, perturbed
from gswarm.scheduler.strategy import Strategy
from gswarm.scheduler.types import Happening, Outcome

WARNINGS = 10
"""Shown at most."""
WIDEST = 1 << 16
"""GPUs at most, so more than any model takes: to read a problem for a plan that may have too few of them."""
SILENT_S = 1.0
"""What takes no longer says nothing."""


# Words


def say(text: str) -> None:
    """A message on standard error."""
    from gswarm.cli import say as told

    told(text)


def say_table(rows: Sequence[Outcome]) -> None:
    """Figures on standard error, where standard output has other data."""
    from gswarm.views import table

    sys.stderr.write("".join(f"{line}\n" for line in table(rows, Outcome)))


@contextlib.contextmanager
def working(message: str, seconds: float = 0.0) -> Iterator[None]:
    """Around work that keeps the whole process busy: tells how far it is of `seconds`, and ends at once on Ctrl-C.

    Raises GswarmError where a strategy cannot do the problem.
    """
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(message, seconds, over), daemon=True)
    handler = signal.getsignal(signal.SIGINT)
    # The event loop's handler only marks its task as cancelled, which work that never waits does not notice.
    is_ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if _is_cancelled():
            signal.signal(signal.SIGINT, handler)
            raise asyncio.CancelledError  # between two pieces of work, or before the first
    collects = gc.isenabled()
    gc.disable()  # no cycles to be found, and looking for them takes a third of the time of reading files
    if message:
        teller.start()
    try:
        yield
    except (SimulationError, strategies.StrategyError) as error:
        raise GswarmError(str(error)) from None
    finally:
        over.set()
        if message:
            teller.join()
        if collects:
            gc.enable()
        if is_ours:
            signal.signal(signal.SIGINT, handler)


def _is_cancelled() -> bool:
    """Whether this task is, as by the event loop's handler of an interrupt."""
    with contextlib.suppress(RuntimeError):  # no loop runs here
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return False


def _tell(message: str, seconds: float, over: threading.Event) -> None:
    from gswarm.cluster.types import Progress
    from gswarm.execute import Shower

    began = time.monotonic()
    if over.wait(SILENT_S):
        return
    shower = Shower()
    while True:
        gone = time.monotonic() - began
        fraction = min(1.0, gone / seconds) if seconds else None
        shower(Progress(fraction=fraction, message=f"{message}, {gone:.0f} s"))
        if over.wait(0.5):
            break
    shower.end()


# Checks


def check_gpus(gpus: int) -> None:
    """Raises InvalidError for less than one, and for more than can be listed."""
    if not 1 <= gpus <= WIDEST:
        raise InvalidError(f"there cannot be {gpus} GPUs", next=f"give 1 to {WIDEST}", field="gpus")


def check_seed(seed: int) -> None:
    """Raises InvalidError for less than 0."""
    if seed < 0:
        raise InvalidError(f"--seed is {seed}", next="give 0 or more", field="seed")


def check_search(seconds: float, iterations: int) -> None:
    """Raises InvalidError for a search that takes less than no time."""
    if seconds < 0 or iterations < 0:
        raise InvalidError("a search takes no less than no time", next="give --seconds and --iterations from 0 up")


def check_strategy(name: str, *, online: bool) -> None:
    """Raises InvalidError for a strategy that there is not, or not in this mode."""
    known = names(online=online)
    if name not in known:
        if name in names(online=False):
            raise InvalidError(
                f"{name} needs all requests at t = 0", next="use --mode offline, or --strategy online", field="strategy"
            )
        raise InvalidError(
            f"there is no strategy {name!r}", next=near(name, known) or f"one of {', '.join(known)}", field="strategy"
        )


def check_out(out: Path | None, *files: Path) -> None:
    """Raises InvalidError where a plan would take the place of what it is made from."""
    if out is not None and out.is_file() and out.resolve() in {file.resolve() for file in files}:
        raise InvalidError(f"--out is {out}, which is read", next="name another file", field="out")


def check_plot(path: Path) -> None:
    """Before long work: raises InvalidError for a kind of picture, RefusedError without what draws it."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise InvalidError(f"--plot is {path}", next="name a file that ends in .svg or .png", field="plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RefusedError("matplotlib is not installed", next='run pip install "gswarm[plot]"') from None


# Files


@contextlib.contextmanager
def _reading(*paths: Path) -> Iterator[None]:
    try:
        with working("reading files"):
            yield
    except OSError as error:
        raise InvalidError(f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}") from None
    except ProblemError as error:
        raise InvalidError(str(error)) from None
    except RecursionError:
        names = " or ".join(map(str, paths))
        raise InvalidError(f"{names} is nested too deep to be a file of scheduling") from None


def read_problem(config: Path, requests: Path, gpus: int, *, online: bool) -> Problem:
    """The problem of two files. What was ignored in them is said on standard error."""
    check_gpus(gpus)
    with _reading(config, requests):
        problem = problem_of(read_file(config), read_file(requests), gpus)
    return _made(problem, online=online)


def _made(problem: Problem, *, online: bool) -> Problem:
    for warning in problem.warnings[:WARNINGS]:
        say(f"warning: {warning}")
    if (more := len(problem.warnings) - WARNINGS) > 0:
        say(f"warning: {more} more of these")
    return problem if online else problem.offline()


def read_executions(path: Path) -> tuple[int, list[Execution]]:
    """How many GPUs a plan is for, and its runs."""
    with _reading(path):
        gpus, runs = executions_of(read_file(path))
    check_gpus(gpus)
    return gpus, runs


def read_planned(
    config: Path, requests: Path, path: Path, there: int | None = None, *, online: bool
) -> tuple[Problem, int, list[Execution]]:
    """A plan and its problem, with so many GPUs; else with as many as the plan says or the widest model of a task takes.

    Also how many GPUs the plan is for.
    """
    with _reading(path):
        gpus, runs = executions_of(read_file(path))
    if gpus > WIDEST:
        check_gpus(gpus)
    if there is not None:
        return read_problem(config, requests, there, online=online), gpus, runs
    with _reading(config, requests):
        wide = problem_of(read_file(config), read_file(requests), WIDEST)
    widest = max((wide.models[m].width for m in set(wide.model.tolist())), default=1)
    count = max(gpus, widest)
    placements = tuple(placement for placement in wide.placements if max(placement.gpus, default=0) < count)
    problem = replace(wide, gpus=wide.gpus[:count], placements=placements)
    return _made(problem, online=online), gpus, runs


def write(path: Path, pieces: Iterable[str | bytes]) -> None:
    """A file, whole or not at all; gzip when named so; "-" is standard output."""
    from gswarm.cli import writing

    if path == Path("-"):
        with writing():
            for piece in pieces:
                sys.stdout.write(piece if isinstance(piece, str) else piece.decode())
        return
    try:
        if path.exists() and not path.is_file():
            _write(path, path, pieces)  # a pipe or a device
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with working(f"writing {path}"):
                _write(temporary, path, pieces)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None


def _write(target: Path, named: Path, pieces: Iterable[str | bytes]) -> None:
    with target.open("wb") as raw:
        if named.suffix == ".gz":
            # Without a name and a time in it, the same content is the same file.
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                for piece in pieces:
                    packed.write(piece.encode() if isinstance(piece, str) else piece)
            return
        for piece in pieces:
            raw.write(piece.encode() if isinstance(piece, str) else piece)


# Work


def bound(problem: Problem, *, online: bool) -> float:
    """The proven lower bound on the makespan, seconds."""
    return lower_bound(problem, online=online).value


def totals(gpus: int, runs: Sequence[Execution], bound_s: float = 0.0) -> str:
    """A plan's figures in a line."""
    makespan = max((run.end for run in runs), default=0.0)
    loads = [run.switch_seconds for run in runs if run.switch_seconds]
    work = sum((run.end - run.start) * len(run.gpus) for run in runs)
    used = work / (gpus * makespan) if makespan else 0.0
    ratio = f" = {makespan / bound_s:.3f} × bound" if bound_s else ""
    return f"makespan {makespan:.1f} s{ratio} · {len(loads)} switches, {sum(loads):.1f} s · utilisation {used:.0%}"


def in_colour() -> bool:
    """Whether standard output is a terminal that shows colour to someone who wants it."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True)
class Simulated:
    """A simulation, run while someone looks on."""

    problem: Problem
    strategy: str
    online: bool
    noise: float
    seed: int
    reasons: bool
    out: Path | None

    def tell(self, show: Callable[[Happening], None]) -> None:
        """Run it and `show` each thing as it happens; write the plan; say on standard error what it comes to."""
        problem = self.problem

        def watch(record: Record) -> None:
            show(_happening(self.problem, record))

        with working(""):
            strategy = _strategy(self.strategy, shared=problem.shared, reasons=self.reasons)
            simulation = Simulation(problem, strategy, noise=self.noise, seed=self.seed, watch=watch)
            made = simulation.run()
            if self.noise:
                problem = perturbed(problem, made)
            bound_s = noisy_bound(problem, self.noise, online=self.online)
        if self.out is not None:
            write(self.out, plan_lines(problem, made))
        planned = Planned(made, simulation.planning_s)
        say_table([outcome(self.strategy, problem, planned, bound_s, online=self.online)])


def _strategy(name: str, *, shared: bool, reasons: bool) -> Strategy:
    if reasons:
        with contextlib.suppress(TypeError):  # it takes no such option: what it says, it says anyway
            return strategies.create(name, shared=shared, reasons=True)
    return strategies.create(name, shared=shared)


def _happening(problem: Problem, record: Record) -> Happening:
    task = problem.name_of(record.task) if record.task >= 0 else ""
    model = problem.models[record.model].id if record.model >= 0 else ""
    return Happening(
        record.time, record.kind, task, model, record.gpus, record.seconds, record.passed_over, record.reason
    )
