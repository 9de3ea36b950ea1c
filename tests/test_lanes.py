"""Plan lanes and the other small pictures: they add up, keep their width and never invent."""

from __future__ import annotations

from gswarm_tui import figures
from gswarm_tui.themes import Form
from gswarm_tui.view import BlockView
from gswarm_tui.widgets.gauge import bar
from gswarm_tui.widgets.lanes import ZOOMS, axis, lane, zoomed
from gswarm_tui.widgets.ledger import Part, ledger, total_line, widths
from gswarm_tui.widgets.spans import fit, plain, width
from gswarm_tui.widgets.sparkline import rows
from hypothesis import given
from hypothesis import strategies as st

from gswarm.scheduler.lanes import initials, label

NOW = 1_000_000.0


def block(
    model: str, start: float, end: float, *, load: float = 0.0, running: bool = False, count: int = 3
) -> BlockView:
    return BlockView(model, 1, NOW + start, NOW + end, load, count, running, (), "", 0)


blocks = st.lists(
    st.builds(
        block,
        st.sampled_from(("llama-8b", "qwen-7b", "sdxl", "s")),
        st.floats(-100, 900),
        st.floats(-100, 900),
        load=st.floats(0, 60),
        running=st.booleans(),
        count=st.integers(0, 99),
    ),
    max_size=8,
)


@given(blocks, st.integers(0, 200), st.sampled_from(ZOOMS), st.sampled_from(list(Form)))
def test_a_lane_has_exactly_its_cells(found: list[BlockView], cells: int, cell_s: int, form: Form) -> None:
    spans = lane(found, NOW, cells, cell_s, initials(b.model for b in found), form)
    assert width(spans) == cells


def test_blocks_stand_where_their_time_is() -> None:
    text = plain(lane([block("sdxl", 0, 50, running=True), block("qwen-7b", 70, 130, load=20)], NOW, 30, 5, {}))
    assert text == "▌sdxl ×3  ░░░░▌qwen-7b ×3     "


def test_a_lane_moves_by_whole_cells_only() -> None:
    drawn = [plain(lane([block("sdxl", 60, 120)], NOW + t, 40, 5, {})) for t in range(6)]
    assert len(set(drawn[:5])) == 1
    assert drawn[5] == drawn[0][1:] + " "


def test_a_running_block_begins_now_and_is_told_apart() -> None:
    spans = lane([block("sdxl", -40, 20, running=True), block("sdxl", 20, 60)], NOW, 12, 5, {})
    assert spans[0] == ("▌", "nowedge1") and spans[2][1] == "lateredge1"


def test_blocks_at_the_same_time_do_not_mix_their_names() -> None:
    text = plain(lane([block("qwen-7b", 0, 75, running=True), block("llama-8b", 0, 40, running=True)], NOW, 16, 5, {}))
    assert text == "▌llama-8▌qwen-7 "


def test_labels_give_way_step_by_step() -> None:
    assert label("coder-14b", 5, 12, "C") == "coder-14b ×5"
    assert label("coder-14b", 5, 11, "C") == "coder-14b"
    assert label("coder-14b", 5, 6, "C") == "coder-"
    assert label("coder-14b", 5, 4, "C") == "C"
    assert label("coder-14b", 5, 0, "C") == ""


def test_initials_are_the_shortest_that_tell_models_apart() -> None:
    assert initials(["llama-8b", "llama-70b", "sdxl", "phi-4"]) == {
        "llama-8b": "Llama-8",
        "llama-70b": "Llama-7",
        "sdxl": "S",
        "phi-4": "P",
    }


def test_without_colour_blocks_have_brackets() -> None:
    text = plain(lane([block("llama-8b", 0, 80, running=True)], NOW, 20, 5, {}, Form.MONO))
    assert text == "[llama-8b ×3===]    "


def test_the_axis_names_whole_times() -> None:
    assert plain(axis(40, 5)).split() == ["now", "+1m", "+2m", "+3m"]
    assert plain(axis(42, 2)).split() == ["now", "+24s", "+48s", "+1m12"]


def test_zoom_stops_at_its_ends() -> None:
    assert zoomed(1, -1) == 1 and zoomed(30, 1) == 30 and zoomed(5, 1) == 10


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.integers(8, 200))
def test_the_ledger_adds_up(counts: list[int], cells: int) -> None:
    parts = [Part(f"m{i}", "", c, i) for i, c in enumerate(counts)]
    drawn = widths(parts, cells)
    assert sum(drawn) == (cells if sum(counts) else 0)
    assert all((w > 0) == (c > 0) for w, c in zip(drawn, counts, strict=True) if sum(counts) and len(counts) <= cells)
    for line in ledger(parts, cells):
        assert width(line) in (0, cells)


def test_the_ledger_says_its_sum() -> None:
    parts = [Part("llama-8b", "weights", 16 * 2**30, 0), Part("free", "", 64 * 2**30, is_free=True)]
    assert total_line(parts) == "16.0 llama-8b + 64.0 free = 80G"


@given(st.one_of(st.none(), st.floats(-1, 2)), st.integers(1, 40))
def test_a_bar_has_exactly_its_cells(share: float | None, cells: int) -> None:
    assert width(bar(share, cells)) == cells


def test_a_gap_in_a_history_stays_a_gap() -> None:
    top, bottom = rows([100.0, None, 50.0], 4, 100.0)
    assert (top, bottom) == (" █  ", " █ █")


@given(st.text("ab漢é ", max_size=12), st.integers(0, 20))
def test_fitted_text_has_exactly_its_cells(text: str, cells: int) -> None:
    assert width(fit(((text, "text"),), cells)) == cells


def test_numbers_are_never_cut_in_the_middle() -> None:
    assert plain(fit((("12345", "text"),), 3, align="right")) == "###"


def test_figures_keep_within_four_characters() -> None:
    assert [figures.size(n) for n in (0, 640 * 1024, 8 << 20, 16 << 30, 140 << 30, 2560 << 30)] == [
        "0", "640k", "8.0M", "16G", "140G", "2.5T",
    ]  # fmt: skip
    assert [figures.number(n) for n in (0, 656, 1340, 999_600)] == ["0", "656", "1.3k", "1.0M"]
    assert figures.size(None) == "NA"


def test_ages_step() -> None:
    assert [figures.span(s) for s in (0, 9.9, 12, 59, 61, 3599, 6600, 90000)] == [
        "0s", "9s", "10s", "55s", "1m", "59m", "1h50", "1d01",
    ]  # fmt: skip
