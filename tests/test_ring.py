"""The host's ring of deflated ticks: what a plain sorted list would answer, in a fraction of its bytes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gswarm.host.ring import BLOCK, Ring

KEPT_US = 60


@given(st.lists(st.integers(min_value=1, max_value=150), max_size=120), st.integers(0, 160), st.integers(0, 200))
def test_it_answers_like_a_sorted_list_in_whatever_order_ticks_come(times: list[int], moment: int, span: int) -> None:
    ring, plain = Ring(KEPT_US, 1 << 20), dict[int, bytes]()
    for number, time_us in enumerate(times):
        # What is older than all that is kept may come and go.
        wire = b"%d at %d" % (number, time_us)
        oldest = max(plain, default=0) - KEPT_US
        is_new = ring.add(time_us, wire)
        if time_us >= oldest:
            assert is_new == (time_us not in plain)
            plain.setdefault(time_us, wire)
        plain = {at: held for at, held in plain.items() if at >= max(plain) - KEPT_US}
    newest = max(plain, default=0)
    assert ring.last(span) == [plain[at] for at in sorted(plain) if at >= newest - span]
    found = [at for at in plain if at <= moment]
    assert ring.at(moment) == (plain[max(found)] if found else None)


def test_its_size_is_what_it_holds_and_the_oldest_go_when_that_is_too_much() -> None:
    ring = Ring(10**9, 100_000)
    bits = random.Random(0)
    for number in range(500):
        ring.add(number, bits.randbytes(1_000))
        assert ring.size <= 100_000
    kept = ring.last(10**9)
    assert ring.size == sum(map(len, kept)) and len(kept) > 100 - BLOCK
    assert ring.at(499) == kept[-1] and ring.at(0) is None


def test_one_tick_larger_than_the_limit_is_still_the_newest() -> None:
    ring = Ring(100, 10)
    ring.add(1, b"small")
    ring.add(2, b"x" * 50)
    assert ring.last(100) == [b"x" * 50]


def test_a_cut_told_newest_first_is_held_as_small_as_if_it_had_never_been() -> None:
    def wire(number: int) -> bytes:
        return b"%06d" % number + bytes(range(256)) * 8

    straight, cut = Ring(10**9, 1 << 30), Ring(10**9, 1 << 30)
    for number in range(600):
        straight.add(number, wire(number))
    for number in [*range(50), 599, *range(598, 49, -1)]:
        assert cut.add(number, wire(number))
    assert cut.last(10**9) == straight.last(10**9)
    assert straight.held < straight.size / 10
    assert cut.held < 2 * straight.held


def test_neighbours_that_are_nearly_the_same_take_a_fraction() -> None:
    ring, bits = Ring(10**9, 1 << 30), random.Random(0)
    still = bits.randbytes(2_500)
    for number in range(600):
        ring.add(number, still + bits.randbytes(200))  # no bit of 200 bytes a tick can be guessed
    assert ring.held < ring.size / 4
