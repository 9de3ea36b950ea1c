"""Where a model fits: the fewest devices of one node, accelerators before processors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gswarm.model.fitting import WIDTHS, Fit, Offer, default_backend, fit

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
    assert default_backend(both, simulated=False, cpu=False) == "vllm"
    assert default_backend(both, simulated=False, cpu=True) == "transformers"
    assert default_backend(("vllm",), simulated=False, cpu=True) == "vllm"
    assert default_backend(("transformers",), simulated=False, cpu=False) == "transformers"
    assert default_backend((), simulated=False, cpu=False) == "transformers"
    assert default_backend(both, simulated=True, cpu=False) == "simulated"
