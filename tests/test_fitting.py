"""Where a model fits: the fewest devices of one node, accelerators before processors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm.errors import RefusedError
from gswarm.host.store import Store
from gswarm.host.transaction import Transaction
from gswarm.model import operations
from gswarm.model.fitting import WIDTHS, Fit, Offer, default_backend, fit
from gswarm.v1 import cluster_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.models_pb2 import PLACEMENT_PHASE_STORED, Model, ModelVersion, Placement, ServeRequest

offers = st.builds(
    Offer,
    device=st.uuids().map(str),
    node=st.sampled_from(("x", "y")),
    room=st.integers(-5, 30),
    needed=st.sampled_from((20, 24)),
    cpu=st.booleans(),
    alone=st.booleans(),
).map(lambda o: Offer(o.device, o.node, o.room, o.needed, o.cpu, o.cpu or o.alone))


def can_hold(offers: list[Offer], width: int, *, cpu: bool) -> set[str]:
    """Devices that are among `width` of one node with room for an even share each."""
    roomy = [o for o in offers if o.room * width >= o.needed and o.cpu == cpu and (width == 1 or not o.alone)]
    return {o.device for o in roomy if sum(other.node == o.node for other in roomy) >= width}


@given(st.lists(offers, max_size=12))
def test_it_takes_the_fewest_devices_that_hold_it_and_a_processor_only_where_nothing_else_does(
    every: list[Offer],
) -> None:
    found = fit(every)
    width = next((w for w in WIDTHS if can_hold(every, w, cpu=False)), 0)
    if width:
        beside = can_hold(every, 1, cpu=True) if width == 1 else set()
        assert (found.width, set(found.devices)) == (width, can_hold(every, width, cpu=False) | beside)
    else:
        cpus = can_hold(every, 1, cpu=True)
        assert (found.width, set(found.devices)) == (int(bool(cpus)), cpus)
    assert len(set(found.devices)) == len(found.devices)


def test_nothing_fits_nowhere() -> None:
    assert fit([]) == Fit(0, ())


def test_the_backend_is_one_that_the_node_has() -> None:
    both = ("transformers", "vllm")
    assert [default_backend(has, simulated=False) for has in (both, both[:1], both[1:], ())] == [
        "transformers", "transformers", "vllm", "transformers"
    ]  # fmt: skip
    assert default_backend(both, simulated=True) == "simulated"


async def test_a_service_without_a_device_goes_where_a_backend_is(tmp_path: Path) -> None:
    ready, gib = cluster_pb2.NODE_PHASE_READY, 1 << 30
    version = ModelVersion(version="v1", size_bytes=16 * gib)

    def there(tx: Transaction) -> None:
        tx.put(Model(name="a", versions=[version], default_version="v1", size_bytes=16 * gib))
        for name, size, backends in (("n1", 80, []), ("n2", 48, ["transformers"])):
            tx.put(Node(name=name, phase=ready, backends=backends))
            kind = cluster_pb2.DEVICE_KIND_GPU
            tx.put(Device(id=f"{name}-0", alias=f"{name}:gpu0", node=name, kind=kind, memory_bytes=size * gib))
            tx.put(Placement(id=f"a@v1/{name}", model="a", version="v1", node=name, phase=PLACEMENT_PHASE_STORED))

    async with Store(tmp_path) as store:
        await store.apply(there, actor="t")
        served = await store.apply(operations.serve(ServeRequest(model="a")), actor="t")
        assert (served.service.node, served.service.backend) == ("n2", "transformers")
        with pytest.raises(RefusedError, match="no device can take a now"):
            await store.apply(operations.serve(ServeRequest(model="a", backend="vllm")), actor="t")
