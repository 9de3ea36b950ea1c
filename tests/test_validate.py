"""The validator: right plans pass, and each kind of broken plan is caught with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gswarm.scheduler.faults import TOLERANCE_S, Kind
from gswarm.scheduler.plan import Execution
from gswarm.scheduler.problem import Gpu, Model, Node, Placement, Problem, Request, Running, build
from gswarm.scheduler.validate import validate
from tests.support.scheduling import naive, problems

# A: 32 GB, loads 10 s. W: 16 GB on each of two GPUs, loads 6 s. Z: nothing, at once.
MODELS = (Model("A", 1, 32.0, 10.0), Model("W", 2, 16.0, 6.0), Model("Z", 1, 0.0, 0.0))
A, W, Z = range(3)
FLOW = (Node("a", A), Node("w", W, (0,)), Node("a2", A, (1,)))
PROBLEM = build(MODELS, 3, [Request("r0", 0.0, FLOW, [5.0, 4.0, 3.0]), Request("r1", 20.0, FLOW, [5.0, 4.0, 3.0])])

# GPU 0: A, then W over it, then A over W. GPU 1: W. GPU 2: A all the time.
PLAN = (
    Execution("r0", "a", "A", (0,), 10.0, 15.0, 10.0),
    # Over A's 32 GB; runs while the task before it runs no more.
    Execution("r0", "w", "W", (0, 1), 23.0, 27.0, 8.0),
    Execution("r0", "a2", "A", (2,), 30.0, 33.0, 10.0),
    Execution("r1", "a", "A", (2,), 33.0, 38.0, 0.0),
    # W is intact on 0 and 1 still.
    Execution("r1", "w", "W", (0, 1), 38.0, 42.0, 0.0),
    # A on GPU 0 breaks W there: 10 s + 16 GB / 16.
    Execution("r1", "a2", "A", (0,), 53.0, 56.0, 11.0),
)


def kinds(problem: Problem, plan: list[Execution] | tuple[Execution, ...], *, online: bool = False) -> list[Kind]:
    return [fault.kind for fault in validate(problem, len(problem.gpus), plan, online=online)]


def test_a_right_plan_passes() -> None:
    assert validate(PROBLEM, 3, PLAN, online=False) == []
    assert validate(PROBLEM, 3, PLAN[::-1], online=True) == []  # in any order


BROKEN_AGAIN = build(
    MODELS, 3, [Request("r", 0.0, (Node("w", W), Node("a", A, (0,)), Node("w2", W, (1,))), [1.0, 1.0, 1.0])]
)


def broken_again(switch: float) -> list[Execution]:
    """W on 0 and 1, A on `1`, W on 0 and 1 again."""
    start = 19.0 + switch
    return [
        Execution("r", "w", "W", (0, 1), 6.0, 7.0, 6.0),
        Execution("r", "a", "A", (1,), 18.0, 19.0, 11.0),
        Execution("r", "w2", "W", (1, 0), start, start + 1.0, switch),
    ]


def test_a_placement_that_lost_one_gpu_is_loaded_anew_and_its_other_gpus_are_unloaded() -> None:
    assert kinds(BROKEN_AGAIN, broken_again(6.0 + 32.0 / 16)) == []
    assert kinds(BROKEN_AGAIN, broken_again(0.0)) == [Kind.BROKEN]
    assert kinds(BROKEN_AGAIN, broken_again(6.0)) == [Kind.TOO_SHORT]
    [fault] = validate(BROKEN_AGAIN, 3, broken_again(0.0), online=False)
    assert fault.task == "r/w2"
    assert "W was there until r/a took GPU 1" in fault.message
    assert "not 8 s" in fault.message

    small = replace(BROKEN_AGAIN, models=(Model("A", 1, 2.0, 10.0), *MODELS[1:]))
    # GPU 1 holds 2 GB of A, but GPU 0 still holds 16 GB of the broken placement.
    assert kinds(small, broken_again(7.0)) == []
    assert kinds(small, broken_again(6.0 + 2.0 / 16)) == [Kind.TOO_SHORT]


def test_the_same_model_on_another_set_is_another_placement() -> None:
    problem = build(MODELS, 3, [Request("r", 0.0, (Node("w", W), Node("w2", W, (0,))), [1.0, 1.0])])
    first = Execution("r", "w", "W", (0, 1), 6.0, 7.0, 6.0)
    assert kinds(problem, [first, Execution("r", "w2", "W", (1, 2), 14.0, 15.0, 7.0)]) == []
    assert kinds(problem, [first, Execution("r", "w2", "W", (1, 2), 7.0, 8.0, 0.0)]) == [Kind.UNCHARGED]
    assert kinds(problem, [first, Execution("r", "w2", "W", (1, 0), 7.0, 8.0, 0.0)]) == []


def edit(number: int, **fields: object) -> Callable[[], list[Execution]]:
    def edited() -> list[Execution]:
        plan = list(PLAN)
        plan[number] = plan[number]._replace(**fields)  # type: ignore[arg-type]
        return plan

    return edited


PLANTED: list[tuple[str, Kind, Callable[[], list[Execution]]]] = [
    ("the last task left out", Kind.MISSING, lambda: list(PLAN[:-1])),
    ("a task twice, at another time", Kind.DOUBLED, lambda: [*PLAN, PLAN[-1]._replace(start=60.0, end=63.0, switch_seconds=0)]),
    ("a request that is not there", Kind.UNKNOWN, lambda: [*PLAN, PLAN[-1]._replace(request_id="r9")]),
    ("a node that is not there", Kind.UNKNOWN, lambda: [*PLAN, PLAN[-1]._replace(node_id="b")]),
    ("another model", Kind.MODEL, edit(5, model="Z")),
    ("one GPU for a model of two", Kind.WIDTH, edit(4, gpus=(1,))),
    ("two GPUs for a model of one", Kind.WIDTH, edit(5, gpus=(0, 1))),
    ("no GPU", Kind.WIDTH, edit(5, gpus=())),
    ("the same GPU twice", Kind.REPEATED, edit(4, gpus=(1, 1))),
    ("a GPU beyond the last", Kind.RANGE, edit(5, gpus=(3,))),
    ("a GPU below 0", Kind.RANGE, edit(5, gpus=(-1,))),
    ("too short", Kind.DURATION, edit(5, end=55.5)),
    ("too long", Kind.DURATION, edit(5, end=56.5)),
    ("an end before its start", Kind.DURATION, edit(5, end=52.0)),
    ("before what it needs", Kind.DEPENDENCY, edit(2, start=26.0, end=29.0)),
    ("two tasks at once", Kind.OVERLAP, edit(3, start=32.0, end=37.0)),
    ("a switch while the GPU runs something", Kind.OVERLAP, edit(1, start=22.0, end=26.0)),
    ("no switch for the first load", Kind.UNCHARGED, edit(0, switch_seconds=0.0)),
    ("no switch over another model", Kind.UNCHARGED, edit(5, switch_seconds=0.0)),
    ("the unload forgotten", Kind.TOO_SHORT, edit(5, switch_seconds=10.0)),
    ("the load forgotten", Kind.TOO_SHORT, edit(1, switch_seconds=2.0)),
    ("a switch too long", Kind.TOO_LONG, edit(2, switch_seconds=11.0)),
    ("a switch where the placement is intact", Kind.NEEDLESS, lambda: [*PLAN[:4], PLAN[4]._replace(start=48.0, end=52.0, switch_seconds=8.0)]),
    ("before t = 0", Kind.EARLY, edit(0, start=9.0, end=14.0)),
    ("no number", Kind.TIME, edit(5, start=math.nan)),
    ("no end", Kind.TIME, edit(5, end=math.inf)),
    ("a negative switch", Kind.TIME, edit(5, switch_seconds=-1.0)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "plan"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_fault_is_caught(kind: Kind, plan: Callable[[], list[Execution]]) -> None:
    assert kind in kinds(PROBLEM, plan())


def test_most_faults_are_told_alone_and_name_the_task_and_the_numbers() -> None:
    told = {
        edit(5, end=55.5): "r1/a2: wrong duration: takes 3 s and is planned for 2.5 s",
        edit(2, start=26.0, end=29.0, switch_seconds=10.0): "r0/a2: dependency: starts at 26 s; r0/w ends at 27 s",
        edit(3, start=32.0, end=37.0): "r1/a: overlap: starts at 32 s on GPU 2, which r0/a2 has until 33 s",
        edit(5, switch_seconds=10.0): "r1/a2: switch too short: its switch is 10 s and not 11 s (load 10 s + unload "
        "16 GB / 16; A was there until r0/w took GPU 0)",
        edit(
            2, switch_seconds=11.0
        ): "r0/a2: switch too long: its switch is 11 s and not 10 s (load 10 s + unload 0 GB / 16)",
        edit(5, gpus=(3,)): "r1/a2: no such GPU: its GPUs are [3]; there are 0 to 2",
    }
    for plan, message in told.items():
        assert [str(fault) for fault in validate(PROBLEM, 3, plan(), online=False)] == [message]


def test_nothing_is_known_before_it_arrives() -> None:
    early = edit(3, start=33.0, end=38.0)()
    late = build(MODELS, 3, [Request("r0", 0.0, FLOW, [5.0, 4.0, 3.0]), Request("r1", 34.0, FLOW, [5.0, 4.0, 3.0])])
    assert kinds(late, early) == []
    assert kinds(late, early, online=True) == [Kind.ARRIVAL]
    # The start may not, and neither may the switch before it.
    problem = build(MODELS, 1, [Request("r0", 0.0, FLOW[:1], [1.0]), Request("r1", 20.0, FLOW[:1], [1.0])])
    plan = [Execution("r0", "a", "A", (0,), 41.0, 42.0, 0.0), Execution("r1", "a", "A", (0,), 29.0, 30.0, 10.0)]
    assert kinds(problem, plan, online=True) == [Kind.ARRIVAL]
    assert kinds(problem, [plan[0], plan[1]._replace(start=30.0, end=31.0)], online=True) == []


def test_a_release_later_than_the_arrival_counts() -> None:
    problem = build(MODELS, 1, [Request("r0", 0.0, FLOW[:1], [1.0], release=[3.0])])
    assert kinds(problem, [Execution("r0", "a", "A", (0,), 12.0, 13.0, 10.0)], online=True) == [Kind.ARRIVAL]
    assert kinds(problem, [Execution("r0", "a", "A", (0,), 13.0, 14.0, 10.0)], online=True) == []


def test_another_number_of_gpus() -> None:
    assert Kind.GPUS in [f.kind for f in validate(PROBLEM, 2, PLAN, online=False)]
    assert [f.kind for f in validate(PROBLEM, 4, PLAN, online=False)] == [Kind.GPUS]


def test_what_is_loaded_at_first_is_honoured() -> None:
    flow = (Node("a", A),)
    problem = build(MODELS, 2, [Request("r", 0.0, flow, [1.0])], placements=(Placement(W, (0, 1)),))
    assert kinds(problem, [Execution("r", "a", "A", (0,), 11.0, 12.0, 11.0)]) == []
    assert kinds(problem, [Execution("r", "a", "A", (0,), 10.0, 11.0, 10.0)]) == [Kind.TOO_SHORT]
    held = replace(problem, placements=(Placement(A, (1,)),))
    assert kinds(held, [Execution("r", "a", "A", (1,), 0.0, 1.0, 0.0)]) == []
    assert kinds(held, [Execution("r", "a", "A", (1,), 10.0, 11.0, 10.0)]) == [Kind.NEEDLESS]
    assert kinds(held, [Execution("r", "a", "A", (0,), 0.0, 1.0, 0.0)]) == [Kind.UNCHARGED]


def test_gpus_that_are_free_later_slower_or_smaller() -> None:
    flow = (Node("a", A),)
    slow = build(MODELS, [Gpu(speed=0.5, free_at=2.0), Gpu(memory_gb=24.0)], [Request("r", 0.0, flow, [1.0])])
    assert kinds(slow, [Execution("r", "a", "A", (0,), 12.0, 14.0, 10.0)]) == []
    assert kinds(slow, [Execution("r", "a", "A", (0,), 12.0, 13.0, 10.0)]) == [Kind.DURATION]
    assert kinds(slow, [Execution("r", "a", "A", (0,), 11.0, 13.0, 10.0)]) == [Kind.NOT_FREE]
    assert kinds(slow, [Execution("r", "a", "A", (1,), 10.0, 11.0, 10.0)]) == [Kind.MEMORY]


def test_a_running_task_keeps_its_gpus_and_its_placement() -> None:
    problem = build(MODELS, 2, [Request("r", 0.0, (Node("a", A), Node("b", A, (0,))), [9.0, 1.0])])
    problem = replace(problem, running=(Running(0, (1,), 4.0),))
    after = Execution("r", "b", "A", (1,), 4.0, 5.0, 0.0)
    itself = Execution("r", "a", "A", (1,), -5.0, 4.0, 0.0)
    assert kinds(problem, [after]) == []
    assert kinds(problem, [itself, after]) == []
    assert kinds(problem, [itself._replace(gpus=(0,)), after]) == [Kind.RUNNING]
    assert kinds(problem, [itself._replace(end=3.0), after]) == [Kind.RUNNING]
    assert set(kinds(problem, [after._replace(start=3.0, end=4.0)])) == {Kind.OVERLAP, Kind.DEPENDENCY}
    assert kinds(problem, [after._replace(gpus=(0,))]) == [Kind.UNCHARGED]


def test_zero_seconds_at_one_instant_are_legal_in_some_order() -> None:
    models = (Model("M", 1, 0.0, 5.0), Model("Z", 1, 0.0, 0.0), Model("Q", 1, 32.0, 0.0))
    nodes = tuple(Node(f"n{n}", m) for n, m in enumerate([0, 1, 0, 1, 2, 2]))
    problem = build(models, 1, [Request("r", 0.0, nodes, [0.0, 0.0, 0.0, 7.0, 0.0, 0.0])])
    runs = [Execution("r", f"n{n}", models[m].id, (0,), 5.0, 5.0, 0.0) for n, m in enumerate([0, 1, 0, 1, 2, 2])]
    runs[0] = runs[0]._replace(switch_seconds=5.0)
    # Q's 32 GB can only come after everything else, and Z's 7 s after that with their unload.
    runs[3] = runs[3]._replace(start=7.0, end=14.0, switch_seconds=2.0)
    for seed in range(20):
        Random(seed).shuffle(runs)
        assert kinds(problem, runs) == []
    # But not in the midst of another's window.
    late = [r._replace(start=6.0, end=6.0) if r.node_id == "n2" else r for r in runs]
    assert Kind.OVERLAP in kinds(problem, late)


def test_no_more_faults_are_told_than_asked_for() -> None:
    assert len(validate(PROBLEM, 3, [], online=False)) == 6
    assert len(validate(PROBLEM, 3, [], online=False, limit=2)) == 2


# Several models on a GPU, and models that sleep

SHARED = build(
    (Model("A", 1, 30.0, 5.0), Model("B", 1, 40.0, 5.0), Model("C", 1, 20.0, 5.0)),
    [Gpu(memory_gb=80.0)],
    [Request("r", 0.0, tuple(Node(f"n{n}", m) for n, m in enumerate([0, 1, 0, 2])), [10.0, 10.0, 10.0, 1.0])],
    shared=True,
)


def test_models_share_a_gpu_while_memory_lasts() -> None:
    a = Execution("r", "n0", "A", (0,), 5.0, 15.0, 5.0)
    b = Execution("r", "n1", "B", (0,), 5.0, 15.0, 5.0)
    again = Execution("r", "n2", "A", (0,), 15.0, 25.0, 0.0)
    c = Execution("r", "n3", "C", (0,), 20.0, 21.0, 5.0)
    assert kinds(SHARED, [a, b, again, c]) == []  # B may go when C comes
    longer = [a, b._replace(start=6.0, end=16.0), again, c._replace(start=16.0, end=17.0, switch_seconds=5.0)]
    assert kinds(SHARED, longer) == [Kind.MEMORY]
    assert kinds(SHARED, [a, b, again._replace(start=14.0, end=24.0), c]) == [Kind.OVERLAP]
    assert kinds(SHARED, [a, b._replace(switch_seconds=0.0), again, c]) == [Kind.UNCHARGED]
    assert kinds(SHARED, [a, b._replace(switch_seconds=1.0), again, c]) == [Kind.TOO_SHORT]
    # Where memory is not known a GPU holds one model.
    assert Kind.MEMORY in kinds(replace(SHARED, gpus=(Gpu(),)), [a, b, again, c])


def test_a_sleeping_model_wakes_sooner_and_needs_room_in_host_memory() -> None:
    models = (Model("A", 1, 32.0, 20.0, sleep_s=1.0, wake_s=2.0), Model("B", 1, 16.0, 20.0, sleep_s=1.0, wake_s=2.0))
    flow = (Node("n0", 0), Node("n1", 1, (0,)), Node("n2", 0, (1,)))
    problem = build(models, 1, [Request("r", 0.0, flow, [1.0, 1.0, 1.0])], host_memory_gb=32.0)
    runs = [
        Execution("r", "n0", "A", (0,), 20.0, 21.0, 20.0),
        Execution("r", "n1", "B", (0,), 42.0, 43.0, 21.0),
        Execution("r", "n2", "A", (0,), 46.0, 47.0, 3.0),
    ]
    assert kinds(problem, runs) == []
    assert kinds(replace(problem, host_memory_gb=31.0), runs) == [Kind.HOST_MEMORY]
    assert kinds(problem, [*runs[:2], runs[2]._replace(switch_seconds=1.0)]) == [Kind.TOO_SHORT]
    assert kinds(problem, [*runs[:2], runs[2]._replace(switch_seconds=0.0)]) == [Kind.UNCHARGED]
    # Never loaded before, it cannot wake; and no switch takes longer than it can.
    assert kinds(problem, [runs[0]._replace(start=3.0, end=4.0, switch_seconds=3.0), *runs[1:]]) == [Kind.TOO_SHORT]
    assert kinds(problem, [*runs[:2], runs[2]._replace(start=70.0, end=71.0, switch_seconds=27.0)]) == [Kind.TOO_LONG]


def test_a_placement_that_stayed_idle_was_not_in_host_memory_yet() -> None:
    pair = tuple(Model(m, 1, 32.0, 20.0, sleep_s=1.0, wake_s=2.0) for m in "ABC")
    nodes = tuple(Node(f"n{n}", model) for n, model in enumerate((0, 1, 2, 1, 0)))
    problem = build(pair, 2, [Request("r", 0.0, nodes, [1.0] * 5)], host_memory_gb=32.0)
    runs = [
        Execution("r", "n0", "A", (0,), 20.0, 21.0, 20.0),  # and stays there until 100
        Execution("r", "n1", "B", (1,), 20.0, 21.0, 20.0),
        Execution("r", "n2", "C", (1,), 42.0, 43.0, 21.0),  # B is asleep from 21
        Execution("r", "n3", "B", (0,), 104.0, 105.0, 4.0),  # until it takes A's GPU at 100
        Execution("r", "n4", "A", (1,), 204.0, 205.0, 4.0),
    ]
    assert kinds(problem, runs) == []
    early = [*runs[:3], runs[3]._replace(start=54.0, end=55.0), runs[4]._replace(start=47.0, end=48.0)]
    assert Kind.TOO_SHORT not in kinds(problem, early)
    both = [*runs[:3], runs[3], Execution("r", "n4", "A", (1,), 110.0, 111.0, 4.0)]
    assert kinds(replace(problem, host_memory_gb=31.0), both) == [Kind.HOST_MEMORY]


def test_what_sleeps_is_charged_for_leaving_and_nothing_wakes_before_it_has_slept() -> None:
    models = tuple(Model(m, 1, 32.0, 20.0, sleep_s=1.0, wake_s=2.0) for m in "AB")
    nodes = (Node("n0", 0), Node("n1", 1), Node("n2", 0))
    problem = build(models, 2, [Request("r", 0.0, nodes, [5.0, 5.0, 5.0])], host_memory_gb=100.0)
    runs = [
        Execution("r", "n0", "A", (0,), 20.0, 25.0, 20.0),
        Execution("r", "n1", "B", (0,), 46.0, 51.0, 21.0),
        Execution("r", "n2", "A", (1,), 27.0, 32.0, 2.0),
    ]
    assert kinds(problem, runs) == []
    assert kinds(problem, [runs[0], runs[1]._replace(start=45.0, end=50.0, switch_seconds=20.0), runs[2]]) == [
        Kind.TOO_SHORT
    ]
    # At 24 its first task still runs, and nothing of it can be asleep.
    assert kinds(problem, [*runs[:2], runs[2]._replace(start=26.0, end=31.0)]) == [Kind.TOO_SHORT]
    # What is intact may have been asleep meanwhile; without host memory it cannot.
    again = [*runs[:2], Execution("r", "n2", "A", (0,), 54.0, 59.0, 3.0)]
    assert kinds(problem, again) == []
    stays = [runs[0], runs[1]._replace(gpus=(1,), start=20.0, end=25.0, switch_seconds=20.0)]
    assert kinds(problem, [*stays, Execution("r", "n2", "A", (0,), 28.0, 33.0, 3.0)]) == []
    assert Kind.NEEDLESS in kinds(
        replace(problem, host_memory_gb=0.0), [*stays, Execution("r", "n2", "A", (0,), 47.0, 52.0, 22.0)]
    )


def test_beside_each_other_a_model_slept_from_when_it_had_no_room_any_more() -> None:
    models = tuple(Model(m, 1, 40.0, 20.0, sleep_s=1.0, wake_s=2.0) for m in "ABC")
    nodes = tuple(Node(f"n{n}", model) for n, model in enumerate((0, 1, 2, 0)))
    tiers = {"shared": True, "host_memory_gb": 39.0}
    problem = build(models, [Gpu(80.0)], [Request("r", 0.0, nodes, [1.0, 50.0, 5.0, 1.0])], **tiers)
    runs = [
        Execution("r", "n0", "A", (0,), 20.0, 21.0, 20.0),
        Execution("r", "n1", "B", (0,), 20.0, 70.0, 20.0),
        Execution("r", "n2", "C", (0,), 45.0, 50.0, 20.0),
        Execution("r", "n3", "A", (0,), 62.0, 63.0, 2.0),
    ]
    assert kinds(problem, runs) == [Kind.HOST_MEMORY]
    assert kinds(replace(problem, host_memory_gb=40.0), runs) == []


def test_what_loads_in_no_time_may_leave_between_its_executions() -> None:
    models = tuple(Model(m, 1, 80.0, load_s, sleep_s=0.0, wake_s=0.0) for m, load_s in (("A", 0.0), ("B", 5.0)))
    nodes = (Node("n0", 0), Node("n1", 1, (0,)), Node("n2", 0, (1,)))
    problem = build(models, [Gpu(80.0)], [Request("r", 0.0, nodes, [1.0, 1.0, 1.0])], shared=True)
    runs = [
        Execution("r", "n0", "A", (0,), 0.0, 1.0, 0.0),
        Execution("r", "n1", "B", (0,), 6.0, 7.0, 5.0),
        Execution("r", "n2", "A", (0,), 7.0, 8.0, 0.0),
    ]
    assert kinds(problem, runs) == []
    assert kinds(problem, [*runs[:2], runs[2]._replace(start=6.5, end=7.5)]) != []


@pytest.mark.parametrize("room", [None, 80.0])
def test_what_has_no_length_may_come_before_what_begins_at_that_moment(room: float | None) -> None:
    """Whatever the last digits of its switch say."""
    models = tuple(Model(m, 1, 80.0, load_s, sleep_s=0.0, wake_s=0.0) for m, load_s in (("A", 0.0), ("B", 1.0)))
    nodes = (Node("n0", 1), Node("n1", 0, (0,)), Node("n2", 1, (1,)))
    problem = build(models, [Gpu(room)], [Request("r", 0.0, nodes, [1 / 3, 0.0, 0.0])], shared=True)
    at = 1.0 + 1 / 3
    runs = [
        Execution("r", "n0", "B", (0,), 1.0, at, 1.0),
        Execution("r", "n1", "A", (0,), at, at, 0.0),
        Execution("r", "n2", "B", (0,), at + 1.0, at + 1.0, 1.0),
    ]
    assert at + 1.0 - 1.0 < at
    assert kinds(problem, runs) == []
    later = [runs[0], runs[1]._replace(start=at + 0.5, end=at + 0.5), runs[2]]
    assert set(kinds(problem, later)) >= {Kind.MEMORY}


def test_what_has_no_room_beside_a_load_has_the_time_to_leave() -> None:
    models = (Model("A", 1, 50.0, 10.0), Model("B", 1, 48.0, 10.0), Model("C", 1, 30.0, 10.0))
    nodes = (Node("n0", 0), Node("n1", 1), Node("n2", 2))
    problem = build(models, [Gpu(80.0)], [Request("r", 0.0, nodes, [10.0, 1.0, 1.0])], shared=True)
    a = Execution("r", "n0", "A", (0,), 10.0, 20.0, 10.0)
    b = Execution("r", "n1", "B", (0,), 33.125, 34.125, 13.125)  # A takes 50 / 16 s to unload
    c = Execution("r", "n2", "C", (0,), 30.0, 31.0, 10.0)
    assert kinds(problem, [a, b, c]) == []
    assert kinds(problem, [a, b._replace(switch_seconds=10.0), c]) == [], "unloaded for something that ran nothing"
    assert kinds(problem, [a, b._replace(start=30.0, end=31.0, switch_seconds=10.0), c]) == [Kind.TOO_SHORT]
    assert kinds(problem, [a, b._replace(start=33.0, end=34.0, switch_seconds=13.0), c]) == [Kind.TOO_SHORT]
    # On a GPU whose memory is not known even C has no room beside A.
    one = replace(problem, gpus=(Gpu(),))
    assert Kind.TOO_SHORT in kinds(one, [a, c, b._replace(start=50.0, end=51.0)])


# In bulk


@given(problems(optional=True), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=100, deadline=None)
def test_valid_plans_pass(problem: Problem, rng: Random, online: bool) -> None:
    plan = naive(problem, rng, online=online)
    rng.shuffle(plan)
    assert [str(fault) for fault in validate(problem, len(problem.gpus), plan, online=online)] == []


@given(problems(optional=True), st.randoms(use_true_random=False), st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_plan_is_caught(problem: Problem, rng: Random, data: st.DataObject) -> None:
    plan = naive(problem, rng, online=False)
    assume(plan)
    victim = data.draw(st.integers(0, len(plan) - 1))
    run = plan[victim]
    change = data.draw(st.sampled_from(["drop", "double", "switch", "duration", "earlier", "gpus", "model"]))
    rest = plan[:victim] + plan[victim + 1 :]
    if change == "drop":
        assert Kind.MISSING in kinds(problem, rest)
    elif change == "double":
        assert Kind.DOUBLED in kinds(problem, [*plan, run])
    elif change == "switch":
        other = data.draw(st.sampled_from([0.0, run.switch_seconds / 2, run.switch_seconds + 1.0]))
        assume(abs(other - run.switch_seconds) > 10 * TOLERANCE_S)
        found = kinds(problem, [*rest, run._replace(switch_seconds=other)])
        assert {Kind.UNCHARGED, Kind.BROKEN, Kind.TOO_SHORT, Kind.TOO_LONG, Kind.NEEDLESS} & set(found)
    elif change == "duration":
        assert Kind.DURATION in kinds(problem, [*rest, run._replace(end=run.end + 0.5)])
    elif change == "earlier":
        # So early that it cannot be: before t = 0.
        by = run.start - run.switch_seconds + 0.5
        assert Kind.EARLY in kinds(problem, [*rest, run._replace(start=run.start - by, end=run.end - by)])
    elif change == "gpus":
        gpus = data.draw(st.sampled_from([(*run.gpus, run.gpus[0]), run.gpus[1:], (*run.gpus[1:], len(problem.gpus))]))
        found = kinds(problem, [*rest, run._replace(gpus=gpus)])
        assert {Kind.REPEATED, Kind.WIDTH, Kind.RANGE} & set(found)
    else:
        assert Kind.MODEL in kinds(problem, [*rest, run._replace(model="another")])


@given(problems(max_tasks=8, max_gpus=3, optional=True), st.randoms(use_true_random=False), st.data())
@settings(max_examples=150, deadline=None)
def test_moving_a_task_is_caught_if_and_only_if_something_is_broken(
    problem: Problem, rng: Random, data: st.DataObject
) -> None:
    """Against a check by definition, pair by pair, of starts, overlaps and dependencies."""
    plan = naive(problem, rng, online=True)
    assume(plan)
    victim = data.draw(st.integers(0, len(plan) - 1))
    by = data.draw(st.sampled_from([-40.0, -5.0, -1.0, 1.0, 5.0, 40.0]))
    run = plan[victim]
    plan[victim] = run._replace(start=run.start + by, end=run.end + by)
    found = set(kinds(problem, plan, online=True))

    planned = {f"{r.request_id}/{r.node_id}": r for r in plan}
    ends = {r.task: r.end for r in problem.running}
    ends |= {t: planned[problem.name_of(t)].end for t in range(problem.tasks) if t not in ends}
    late = any(
        planned[problem.name_of(task)].start < ends[int(pred)] - TOLERANCE_S
        for task in range(problem.tasks)
        if problem.name_of(task) in planned
        for pred in problem.preds_of(task)
    )
    overlap = any(
        first is not second
        and set(first.gpus) & set(second.gpus)
        and max(first.start - first.switch_seconds, second.start - second.switch_seconds)
        < min(first.end, second.end) - TOLERANCE_S
        for first in plan
        for second in plan
    )
    early = by < 0 and run.start - run.switch_seconds + by < -TOLERANCE_S
    assert (Kind.DEPENDENCY in found) == late
    assert (Kind.EARLY in found) == early
    if overlap:
        assert Kind.OVERLAP in found


def test_the_replay_does_not_slow_down_with_many_ties() -> None:
    nodes = (Node("z", Z),)
    requests = [Request(f"r{n}", 0.0, nodes, [0.0]) for n in range(20_000)]
    problem = build(MODELS, 2, requests)
    plan = [Execution(f"r{n}", "z", "Z", (n % 2,), 0.0, 0.0, 0.0) for n in range(20_000)]
    assert validate(problem, 2, plan, online=True) == []
