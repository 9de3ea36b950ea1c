"""Seeded instances: popularity by Zipf's law, wide models, layered graphs, any load, calm or in bursts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gswarm.scheduler.problem import MOST, Floats, Gpu, Model, Node, Problem, ProblemError, Request, build

SLEEP_GB_PER_S = 25.0
"""Between a GPU and host memory, both ways: what a PCIe 4.0 x16 link carries in practice."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to generate. The same recipe gives the same instance."""

    seed: int = 0
    requests: int = 200
    gpus: int = 8
    models: int = 6
    workflows: int = 5
    zipf: float = 1.0
    """Exponent of the models' popularity; 0: all alike."""
    depth: int = 3
    """Layers of a workflow at most."""
    width: int = 2
    """Nodes in a layer at most."""
    wide_share: float = 0.25
    """Share of the models that take 2 or 4 GPUs."""
    load_over_run: float = 4.0
    """Load time of a model over the run time of its tasks, on average."""
    run_s: float = 5.0
    saturation: float = 1.0
    """Work that arrives a second over what the GPUs can do, loads not counted; above 1 the queue grows."""
    burst: float = 1.0
    """Requests that arrive together, on average."""
    gpu_memory_gb: float = 0.0
    """Of each GPU; 0: room for any one model."""
    shared: bool = False
    """Several models on a GPU while its memory lasts."""
    host_memory_gb: float = 0.0
    """For models that sleep; they do so at `SLEEP_GB_PER_S`."""
    deadline_over_run: float = 0.0
    """How long after its arrival a request is due, over the run time of all its tasks; 0: no deadlines."""


def generate(recipe: Recipe) -> Problem:
    """The instance of a recipe. Raises ProblemError for one that cannot be."""
    for name in ("requests", "gpus", "models", "workflows", "depth", "width"):
        if getattr(recipe, name) < 1:
            raise ProblemError(f"{name} is {getattr(recipe, name)}; at least 1")
    if (
        min(recipe.gpu_memory_gb, recipe.host_memory_gb, recipe.deadline_over_run, recipe.zipf, recipe.load_over_run)
        < 0
    ):
        raise ProblemError("memory, deadlines, zipf and load_over_run are not negative")
    if recipe.shared and not recipe.gpu_memory_gb:
        raise ProblemError("models share GPUs whose memory is known: give it")
    if recipe.saturation <= 0 or recipe.burst < 1 or recipe.run_s < 0 or not 0 <= recipe.wide_share <= 1:
        raise ProblemError("saturation is above 0, burst at least 1, run_s not negative, wide_share from 0 to 1")
    rng = np.random.default_rng(recipe.seed)
    runs = recipe.run_s * rng.uniform(0.4, 1.8, recipe.models)
    models = [_model(recipe, rng, number) for number in range(recipe.models)]
    weights = np.arange(1, recipe.models + 1, dtype=float) ** -recipe.zipf
    popularity = rng.permutation(weights / weights.sum())
    flows = [_workflow(recipe, rng, popularity) for _ in range(recipe.workflows)]
    picks = rng.integers(0, len(flows), recipe.requests)
    work = [sum(runs[n.model] * models[n.model].width for n in flow) for flow in flows]
    rate = recipe.saturation * recipe.gpus / float(np.mean([work[p] for p in picks]) or 1.0)
    times: list[float] = []
    now = 0.0
    while len(times) < recipe.requests:
        times += [round(now, 6)] * int(rng.geometric(1.0 / recipe.burst))  # files keep microseconds
        now += float(rng.exponential(recipe.burst / rate))
    requests = []
    for number, pick in enumerate(picks.tolist()):
        seconds = [round(float(runs[n.model] * rng.lognormal(-0.08, 0.4)), 3) for n in flows[pick]]
        due = float("inf")
        if recipe.deadline_over_run:
            due = times[number] + round(recipe.deadline_over_run * sum(seconds), 3)
        requests.append(Request(f"r{number:06d}", times[number], flows[pick], seconds, deadline=due))
    if recipe.host_memory_gb:
        naps = [round(m.memory_gb / SLEEP_GB_PER_S, 3) for m in models]
        models = [replace(m, sleep_s=nap, wake_s=nap) for m, nap in zip(models, naps, strict=True)]
    gpus = [Gpu(recipe.gpu_memory_gb or None)] * recipe.gpus
    said = [times[-1], recipe.gpu_memory_gb, recipe.host_memory_gb, *(m.load_s for m in models)]
    said += [s for r in requests for s in (*r.seconds, r.deadline - r.arrival if recipe.deadline_over_run else 0.0)]
    if max(said) > MOST:
        raise ProblemError(f"it would have {max(said):g} s or GB in it; files say {MOST:g} at most")
    return build(models, gpus, requests, shared=recipe.shared, host_memory_gb=recipe.host_memory_gb)


def _model(recipe: Recipe, rng: np.random.Generator, number: int) -> Model:
    width = 1
    if rng.random() < recipe.wide_share:
        width = min(recipe.gpus, int(rng.choice([2, 4], p=[0.7, 0.3])))
    memory = round(float(rng.uniform(4, 70)), 1)
    load = round(recipe.load_over_run * recipe.run_s * float(rng.uniform(0.5, 1.5)), 1)
    return Model(f"m{number:02d}", width, memory, load, f"model {number}")


def _workflow(recipe: Recipe, rng: np.random.Generator, popularity: Floats) -> tuple[Node, ...]:
    nodes: list[Node] = []
    above: list[int] = []
    for _ in range(int(rng.integers(1, recipe.depth + 1))):
        layer = []
        for _ in range(int(rng.integers(1, recipe.width + 1))):
            needs: tuple[int, ...] = ()
            if above:
                chosen = rng.choice(above, size=int(rng.integers(1, len(above) + 1)), replace=False)
                needs = tuple(sorted(int(n) for n in chosen))
            layer.append(len(nodes))
            nodes.append(Node(f"n{len(nodes) + 1}", int(rng.choice(len(popularity), p=popularity)), needs))
        above = layer
    return tuple(nodes)
