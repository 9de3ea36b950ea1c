"""What a person can do with the scheduler: plan, check, simulate, compare, generate, explain, show. It needs no host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from gswarm.catalogue import Doc, Told, action
from gswarm.errors import InvalidError
from gswarm.scheduler.types import Explanation, Flaw, Outcome, Verdict

SECONDS = 2.0
"""Of search by default; more of them find a little more."""
COLUMNS = 10_000
"""To draw in at most."""
MANY = 10_000
"""Requests that are looked at for one of a similar name."""
ConfigFile = Annotated[Path, Doc("config file: models and workflows")]
RequestsFile = Annotated[Path, Doc("requests file")]
Gpus = Annotated[int, Doc("how many GPUs there are")]
Mode = Annotated[Literal["offline", "online"], Doc("offline: all is known at t = 0; online: as it arrives")]
SearchSeed = Annotated[int, Doc("for offline: of its search")]
SearchPasses = Annotated[int, Doc("for offline: search so many passes instead, the same on every machine")]
SearchSeconds = Annotated[float, Doc("for offline: how long to search; 0: greedy alone")]


@action("scheduler", "plan", local=True, effect="writes a plan file")
async def plan(
    *,
    config: ConfigFile,
    requests: RequestsFile,
    gpus: Gpus,
    strategy: Annotated[str, Doc("fifo, baseline, affinity, static, online, offline, or one that is installed")],
    mode: Mode = "offline",
    seconds: SearchSeconds = SECONDS,
    iterations: SearchPasses = 0,
    seed: SearchSeed = 0,
    out: Annotated[Path | None, Doc("plan file to write, gzip when it ends in .gz; -: standard output")] = None,
) -> list[Outcome] | int:
    """Plan requests on GPUs, and say what the plan comes to.

    Examples:
        gswarm scheduler plan --config c.json --requests r.json --gpus 8 --strategy offline --seconds 8 --out plan.json
        gswarm scheduler plan --config c.json --requests r.json --gpus 8 --strategy online --mode online --out plan.json
    """
    from gswarm.scheduler import access
    from gswarm.scheduler.formats import plan_lines
    from gswarm.scheduler.planning import outcome, plan_with

    online = mode == "online"
    access.check_search(seconds, iterations)
    access.check_out(out, config, requests)
    access.check_strategy(strategy, online=online)
    problem = access.read_problem(config, requests, gpus, online=online)
    with access.working(f"planning with {strategy}", seconds if strategy == "offline" and not iterations else 0.0):
        planned = plan_with(strategy, problem, seconds=seconds, iterations=iterations, seed=seed)
        row = outcome(strategy, problem, planned, access.bound(problem, online=online), online=online)
    if out is not None:
        access.write(out, plan_lines(problem, planned.plan))
    if out == Path("-"):
        access.say_table([row])
        return 0
    return [row]


@action("scheduler", "validate", local=True, read=True)
async def validate(
    *,
    config: ConfigFile,
    requests: RequestsFile,
    plan: Annotated[Path, Doc("plan file")],
    mode: Annotated[
        Literal["offline", "online"], Doc("online: nothing may begin before its request arrives")
    ] = "offline",
    gpus: Annotated[int | None, Doc("how many GPUs there are; else as many as the plan says")] = None,
    limit: Annotated[int, Doc("faults to show at most")] = 20,
) -> Verdict:
    """Check a plan by the letter of the cost model. Exit code 5 when it is not valid.

    Examples:
        gswarm scheduler validate --config c.json --requests r.json --plan plan.json
        gswarm scheduler validate --config c.json --requests r.json --plan plan.json --mode online --gpus 8
    """
    from gswarm.scheduler import access
    from gswarm.scheduler import validate as validator

    if limit < 1:
        raise InvalidError(f"--limit is {limit}", next="give at least 1", field="limit")
    online = mode == "online"
    problem, planned, runs = access.read_planned(config, requests, plan, gpus, online=online)
    with access.working("checking the plan"):
        faults = validator.validate(problem, planned, runs, online=online, limit=limit + 1)
    flaws = tuple(Flaw(str(f.kind), f.task, f.message) for f in faults[:limit])
    return Verdict(str(plan), not faults, mode, planned, len(runs), flaws, len(faults) > limit)


@action("scheduler", "simulate", local=True, read=True)
async def simulate(
    *,
    config: ConfigFile,
    requests: RequestsFile,
    gpus: Gpus,
    strategy: Annotated[str, Doc("fifo, baseline, affinity, static, online, or one that is installed")] = "online",
    mode: Mode = "online",
    noise: Annotated[float, Doc("real times differ from what is told by up to this share, 0 to below 1")] = 0.0,
    seed: Annotated[int, Doc("of the noise")] = 0,
    reasons: Annotated[bool, Doc("also why, where the strategy says so")] = False,
    out: Annotated[Path | None, Doc("plan file to write; with noise it has the real times")] = None,
) -> Told:
    """Run a strategy on virtual time and show everything that happens; its figures follow on standard error.

    With --output json a line is an object. The columns are time, event, model, GPUs, seconds it will take, task.

    Examples:
        gswarm scheduler simulate --config c.json --requests r.json --gpus 8 --strategy online
        gswarm scheduler simulate --config c.json --requests r.json --gpus 8 --noise 0.5 --seed 1 --output json
    """
    from gswarm.scheduler import access

    if not 0 <= noise < 1:
        raise InvalidError(f"--noise is {noise:g}", next="give a share from 0 to below 1", field="noise")
    access.check_seed(seed)
    access.check_out(out, config, requests)
    if strategy == "offline":
        raise InvalidError("offline makes whole plans and has nothing to simulate", next="use gswarm scheduler plan")
    online = mode == "online"
    access.check_strategy(strategy, online=online)
    return access.Simulated(
        access.read_problem(config, requests, gpus, online=online), strategy, online, noise, seed, reasons, out
    )


@action("scheduler", "compare", local=True, read=True)
async def compare(
    *,
    config: ConfigFile,
    requests: RequestsFile,
    gpus: Gpus,
    strategy: Annotated[list[str], Doc("only these; repeat")] = [],  # noqa: B006
    mode: Mode = "offline",
    seconds: SearchSeconds = SECONDS,
    iterations: SearchPasses = 0,
    seed: SearchSeed = 0,
    plot: Annotated[Path | None, Doc("picture to write, .svg or .png")] = None,
) -> list[Outcome]:
    """Show all strategies side by side.

    Examples:
        gswarm scheduler compare --config c.json --requests r.json --gpus 8
        gswarm scheduler compare --config c.json --requests r.json --gpus 8 --mode online --plot compared.svg
    """
    from gswarm.scheduler import access
    from gswarm.scheduler.planning import names, outcome, plan_with
    from gswarm.scheduler.simulate import SimulationError
    from gswarm.scheduler.strategies import StrategyError

    online = mode == "online"
    access.check_search(seconds, iterations)
    for name in strategy:
        access.check_strategy(name, online=online)
    if plot is not None:
        access.check_plot(plot)
    problem = access.read_problem(config, requests, gpus, online=online)
    rows: list[Outcome] = []
    with access.working("proving the bound"):
        bound_s = access.bound(problem, online=online)
    for name in strategy or names(online=online):
        with access.working(f"planning with {name}", seconds if name == "offline" and not iterations else 0.0):
            try:
                planned = plan_with(name, problem, seconds=seconds, iterations=iterations, seed=seed)
            except (SimulationError, StrategyError) as error:
                access.say(f"warning: {name} cannot do this: {error}")
                continue
            rows.append(outcome(name, problem, planned, bound_s, online=online))
    if plot is not None:
        from gswarm.scheduler.plot import compared

        title = f"{requests.name}: {problem.tasks} tasks on {gpus} GPU{'s' if gpus > 1 else ''}, {mode}"
        access.write(plot, [compared(rows, plot.suffix.lower()[1:], title)])
    return rows


@action("scheduler", "generate", local=True, effect="writes a config and a requests file")
async def generate(
    *,
    config: Annotated[Path, Doc("config file to write, gzip when it ends in .gz")],
    requests: Annotated[Path, Doc("requests file to write, gzip when it ends in .gz")],
    seed: Annotated[int, Doc("the same seed and options give the same files")] = 0,
    count: Annotated[int, Doc("requests")] = 200,
    gpus: Annotated[int, Doc("GPUs that the load is made for")] = 8,
    models: Annotated[int, Doc("models")] = 6,
    workflows: Annotated[int, Doc("workflows")] = 5,
    zipf: Annotated[float, Doc("exponent of the models' popularity; 0: all alike")] = 1.0,
    depth: Annotated[int, Doc("layers of a workflow at most")] = 3,
    width: Annotated[int, Doc("nodes in a layer at most")] = 2,
    wide_share: Annotated[float, Doc("share of the models that take 2 or 4 GPUs")] = 0.25,
    load_over_run: Annotated[float, Doc("load time of a model over the run time of a task, on average")] = 4.0,
    run_seconds: Annotated[float, Doc("run time of a task, on average")] = 5.0,
    saturation: Annotated[float, Doc("work that arrives over what the GPUs can do; above 1 the queue grows")] = 1.0,
    burst: Annotated[float, Doc("requests that arrive together, on average")] = 1.0,
    gpu_memory_gb: Annotated[float, Doc("memory of a GPU; 0: room for any one model")] = 0.0,
    shared: Annotated[bool, Doc("several models on a GPU while its memory lasts")] = False,
    host_memory_gb: Annotated[float, Doc("host memory that models can sleep in")] = 0.0,
    deadline_over_run: Annotated[float, Doc("how soon a request is due, over its run time; 0: no deadlines")] = 0.0,
) -> str:
    """Make an instance: models, workflows and requests from a seed.

    Examples:
        gswarm scheduler generate --config c.json --requests r.json --seed 7
        gswarm scheduler generate --config c.json --requests r.json.gz --count 100000 --gpus 64 --models 20 --zipf 1.2
        gswarm scheduler generate --config c.json --requests r.json --gpu-memory-gb 80 --shared --host-memory-gb 512
    """
    from gswarm.scheduler import access
    from gswarm.scheduler import generate as generator
    from gswarm.scheduler.instances import config_lines, request_lines
    from gswarm.scheduler.problem import ProblemError

    access.check_seed(seed)
    access.check_gpus(gpus)
    if config.resolve() == requests.resolve():
        raise InvalidError(f"--config and --requests are both {config}", next="name two files", field="requests")
    recipe = generator.Recipe(
        seed, count, gpus, models, workflows, zipf, depth, width, wide_share, load_over_run, run_seconds, saturation, burst,
        gpu_memory_gb, shared, host_memory_gb, deadline_over_run,
    )  # fmt: skip
    try:
        with access.working("generating"):
            problem = generator.generate(recipe)
    except (ProblemError, OverflowError, ValueError) as error:
        raise InvalidError(f"there is no such instance: {error}") from None
    access.write(config, config_lines(problem))
    access.write(requests, request_lines(problem))
    return f"{len(problem.requests)} requests, {problem.tasks} tasks of {models} models: {config}, {requests}"


@action("scheduler", "explain", local=True, read=True)
async def explain(
    *,
    config: ConfigFile,
    requests: RequestsFile,
    plan: Annotated[Path, Doc("plan file")],
    task: Annotated[str, Doc("which task, REQUEST/NODE")],
    mode: Mode = "offline",
) -> Explanation:
    """Say why a task of a plan runs where and when it does.

    Examples:
        gswarm scheduler explain --config c.json --requests r.json --plan plan.json --task req_0007/n2
    """
    from gswarm.names import near
    from gswarm.scheduler import access
    from gswarm.scheduler import explain as explaining
    from gswarm.scheduler.problem import ProblemError

    problem, _, runs = access.read_planned(config, requests, plan, online=mode == "online")
    try:
        with access.working("looking at the plan"):
            return explaining.explain(problem, runs, task)
    except ProblemError as error:
        request = task.rpartition("/")[0]
        hint = "" if request in problem.requests else near(request, problem.requests[:MANY])
        raise InvalidError(str(error), next=hint, field="task") from None


@action("scheduler", "show", local=True, read=True)
async def show(
    *,
    plan: Annotated[Path, Doc("plan file")],
    config: Annotated[Path | None, Doc("config file; with --requests the ratio to the bound is told too")] = None,
    requests: Annotated[Path | None, Doc("requests file")] = None,
    mode: Annotated[Literal["offline", "online"], Doc("for the bound: how the plan was made")] = "offline",
    start: Annotated[float, Doc("show from here on, seconds")] = 0.0,
    end: Annotated[float | None, Doc("show until here, seconds; by default all")] = None,
    width: Annotated[int | None, Doc("columns; by default the terminal's")] = None,
    ascii: Annotated[bool, Doc("only ASCII characters")] = False,
) -> str:
    """Draw a plan as lanes over time, one a GPU: a block is a model and how many tasks, ░ is a load.

    Examples:
        gswarm scheduler show --plan plan.json
        gswarm scheduler show --plan plan.json --config c.json --requests r.json --start 600 --end 900
    """
    import shutil

    from gswarm.scheduler import access
    from gswarm.scheduler.lanes import Form, draw

    if (config is None) != (requests is None):
        raise InvalidError("--config and --requests belong together", next="give both or neither")
    if (end is not None and end <= start) or (width is not None and not 1 <= width <= COLUMNS):
        raise InvalidError(
            "there is nothing to show", next=f"give --start below --end, and --width from 1 to {COLUMNS}"
        )
    gpus, runs = access.read_executions(plan)
    bound_s = 0.0
    if config is not None and requests is not None:
        problem = access.read_problem(config, requests, gpus, online=mode == "online")
        with access.working("proving the bound"):
            bound_s = access.bound(problem, online=mode == "online")
    told = access.totals(gpus, runs, bound_s)
    form = Form.COLOUR if access.in_colour() else Form.PLAIN
    if ascii or "utf" not in (sys.stdout.encoding or "").lower():
        form, told = Form.ASCII, told.replace("·", "|").replace("×", "x")
    columns = width or shutil.get_terminal_size().columns
    return "\n".join([told[:columns], *draw(runs, gpus, width=columns, form=form, start=start, end=end)])
