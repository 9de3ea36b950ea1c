"""What the queue's strategy is told of devices, models and servers, from a state in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from gswarm.queue.durations import History
from gswarm.queue.places import Places
from gswarm.scheduler import strategy as seam
from gswarm.v1 import cluster_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.models_pb2 import Model, Placement, Service

GB = 1 << 30
TASKS = [queue_pb2.Task(id="1", model="a", type=queue_pb2.TASK_TYPE_INFERENCE)]


class Cluster:
    """Two nodes with two GPUs each, model a on both; counts how often all devices are looked at."""

    def __init__(self) -> None:
        self.objects: dict[type[Message], dict[str, Any]] = {
            Service: {},
            Model: {},
            Placement: {},
            Node: {},
            Device: {},
        }
        self.away: set[str] = set()
        self.looks = 0
        for node in ("n1", "n2"):
            self.put(node, Node(name=node, backends=["transformers"]))
            self.put(f"a@{node}", Placement(model="a", node=node, phase=models_pb2.PLACEMENT_PHASE_STORED))
            for gpu in (0, 1):
                device = f"{node}/{gpu}"
                self.put(
                    device,
                    Device(id=device, node=node, kind=cluster_pb2.DEVICE_KIND_GPU, memory_bytes=80 * GB),
                )
        self.put("a", Model(name="a", size_bytes=16 * GB))

    def put(self, key: str, message: Message) -> None:
        self.objects[type(message)][key] = message

    # What places read of the state and of the nodes

    def items(self, cls: type[Message]) -> Iterable[tuple[str, Any]]:
        self.looks += cls is Device
        return self.objects[cls].items()

    def list(self, cls: type[Message]) -> list[Any]:
        return [message for _, message in self.items(cls)]

    def get(self, cls: type[Message], key: str) -> Any:
        return self.objects[cls].get(key)

    def connected(self, node: str) -> bool:
        return node not in self.away


def models(events: list[seam.Event]) -> dict[str, tuple[str, ...]]:
    return {e.model.name: e.model.devices for e in events if isinstance(e, seam.ModelIs)}


def test_a_server_that_changes_makes_no_look_at_all_devices() -> None:
    cluster = Cluster()
    places = Places(cluster, cluster, History())  # type: ignore[arg-type]
    assert models(places.changes(TASKS)) == {"a": ("n1/0", "n1/1", "n2/0", "n2/1")}
    cluster.looks = 0
    service = Service(name="s", model="a", node="n1", device_ids=["n1/0"], backend="transformers", max_in_flight=4)
    cluster.put("s", service)
    places.changed(service)
    (told,) = places.changes(TASKS)
    assert isinstance(told, seam.ServerIs) and told.server.devices == ("n1/0",) and told.server.reachable
    service = Service.FromString(service.SerializeToString())
    service.stop = True
    cluster.put("s", service)
    places.changed(service)
    assert places.changes(TASKS) == [seam.ServerGone("s", False)]
    assert cluster.looks == 0


def test_where_a_model_fits_follows_what_is_stored_installed_and_attached() -> None:
    cluster = Cluster()
    places = Places(cluster, cluster, History())  # type: ignore[arg-type]
    places.changes(TASKS)
    gone = cluster.objects[Placement].pop("a@n2")
    places.changed(gone)
    assert models(places.changes(TASKS)) == {"a": ("n1/0", "n1/1")}
    node = Node(name="n1")
    cluster.put("n1", node)
    places.changed(node)
    assert models(places.changes(TASKS)) == {"a": ()}
    cluster.put("a@n2", gone)
    places.changed(gone)
    assert models(places.changes(TASKS)) == {"a": ("n2/0", "n2/1")}
    cluster.away.add("n2")
    places.see_attached()
    events = places.changes(TASKS)
    assert models(events) == {"a": ()} and {e.device for e in events if isinstance(e, seam.DeviceGone)} == {
        "n2/0",
        "n2/1",
    }
    cluster.away.clear()
    places.see_attached()
    events = places.changes(TASKS)
    assert models(events) == {"a": ("n2/0", "n2/1")} and {e.device.id for e in events if isinstance(e, seam.DeviceIs)} == {
        "n2/0", "n2/1",
    }  # fmt: skip


def test_a_node_that_is_back_between_two_looks_is_seen() -> None:
    """Its object changes before its agent counts as attached, and the tick that follows finds all as it was before."""
    cluster = Cluster()
    places = Places(cluster, cluster, History())  # type: ignore[arg-type]
    places.changes(TASKS)
    cluster.away.add("n2")
    places.changed(cluster.get(Node, "n2"))
    assert models(places.changes(TASKS)) == {"a": ("n1/0", "n1/1")}
    cluster.away.clear()
    places.see_attached()
    assert models(places.changes(TASKS)) == {"a": ("n1/0", "n1/1", "n2/0", "n2/1")}


def test_a_model_is_told_of_while_tasks_ask_for_it() -> None:
    cluster = Cluster()
    places = Places(cluster, cluster, History())  # type: ignore[arg-type]
    assert models(places.changes([])) == {} and not places.knows("a")
    places.due = True
    assert models(places.changes(TASKS)) != {} and places.knows("a")
    places.due = True
    assert places.changes([]) == [seam.ModelGone("a")]
