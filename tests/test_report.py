"""Pictures and pages of a recording: self-contained, well-formed, and no name in them is markup."""

from __future__ import annotations

import csv
import json
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gswarm.errors import GswarmError, InvalidError, RefusedError
from gswarm.profiler import actions, analysis, charts, history, plots, reading, report, svg, terminal
from gswarm.profiler.apart import apart
from gswarm.profiler.types import Drawn
from tests.support.scripted import Script, gpu, mark, service, task

G0, G1 = "GPU-n1-0", "SIM-n1-1"
EVIL = '<script>alert("&")</script>$x$'
VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """What a browser would make of it: elements that close in order, and everything that it would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, _ in attrs:
            assert name not in LOADING and not name.startswith("on"), f"{tag} has {name}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def rich(directory: Path, name: str = "rich") -> Script:
    """Two devices, a hole, a mark and a model with names that would be markup."""
    script = Script(directory, name)
    script.state(0, gpu(0), gpu(1, simulated=True), mark(1, 5, EVIL), everything=True)
    schema = script.schema(0, [G0, G1], ["gpu_util_percent", "power_mw", "memory_used_bytes", "memory_total_bytes"])
    for second in (*range(20), *range(60, 80)):
        row = {"gpu_util_percent": second % 100.0, "memory_used_bytes": 2**30, "memory_total_bytes": 80 << 30}
        script.tick(second, schema, [row, {"power_mw": 70_000} if second != 3 else {}])
    script.state(1, service(EVIL, "loading", G0, model=EVIL))
    script.state(9, service(EVIL, "ready", G0, model=EVIL))
    script.state(10, task(1, "running", EVIL, device=G0, ready=9, started=10))
    script.state(30, task(1, "failed", EVIL, device=G0, ready=9, started=10, finished=30))
    return script


def page_of(script: Script) -> str:
    with script.open() as recording:
        every, past = recording.series(), history.read(recording)
        return "".join(report.pieces(analysis.analyse(every, past), every, past))


def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    text = page_of(rich(tmp_path))
    page = Page(text)
    said = " ".join(page.text)
    assert not {"script", "link", "img", "iframe", "object"} & page.tags
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"'\s<]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme:dark" in text
    for expected in ("rich", "Findings", "Timeline", "n1:gpu0", "n1:gpu1 SIM", "are simulated", EVIL, "NA"):
        assert expected in said
    assert (
        re.search(r"n1:gpu0 loaded models \d+ % of the time: 1 load", said)
        and "utilisation, %" in said
        and "power, W" in said
    )


def test_every_drawing_in_the_page_is_xml_with_its_data(tmp_path: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page_of(rich(tmp_path)), re.DOTALL)
    roots = [ET.fromstring(drawing) for drawing in drawings]
    assert len(roots) == 1 + 3  # the timeline; utilisation and memory of gpu0; power of gpu1
    space = "{http://www.w3.org/2000/svg}"
    boxes = [box.get("class") for box in roots[0].iter(f"{space}rect")]
    assert boxes == ["service loading", "service ready", "task failed"]
    util = next(root for root in roots if "utilisation" in (root.get("aria-label") or ""))
    (line,) = util.iter(f"{space}path")
    places = [float(x) for x in re.findall(r"[ML]([\d.]+) ", line.get("d") or "")]
    assert len(places) == 40 and places == sorted(places)
    assert (line.get("d") or "").count("M") == 2, "nothing is drawn over the hole"


def test_an_empty_recording_has_a_page_and_a_picture_too(tmp_path: Path) -> None:
    script = Script(tmp_path, name="empty")
    script.state(0, everything=True)
    assert "Nothing stands out" in " ".join(Page(page_of(script)).text)
    with script.open() as recording:
        every, past = recording.series(), history.read(recording)
        ET.fromstring(plots.draw(every, past, charts.choose(every, past, ())[0] or ("power_mw",), "svg"))
        assert terminal.draw(every, past, (), 80)


@example(EVIL, [1.0])
@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40), st.lists(st.floats(0, 100, width=32) | st.none(), min_size=1, max_size=50))
def test_any_name_and_any_values_make_a_drawing(name: str, values: list[float | None]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        script = Script(Path(directory), "x")
        schema = script.schema(0, [G0], ["gpu_util_percent"])
        for second, value in enumerate(values):
            script.tick(second, schema, [{"gpu_util_percent": value}])
        with script.open() as recording:
            (one,), past = recording.series(), history.read(recording)
    line = charts.line(one, past, "gpu_util_percent")
    odd = charts.Line(line.device, name, line.metric, line.unit, line.x, line.y, line.holds)
    page = Page(svg.chart(odd, past, charts.top([line])))
    assert page.tags <= {"svg", "title", "line", "text", "path"} and name in "".join(page.text)


def test_a_long_line_keeps_its_peaks() -> None:
    import numpy as np

    values = np.zeros(100_000)
    values[77_777], values[33_333] = 99.0, np.nan
    times = np.arange(100_000, dtype=np.int64) * 1_000_000
    line = charts.Line("d", "d", "m", "%", times / 1e6, values, np.ones(100_000))
    x, y = charts.broken(line, 300)
    assert len(x) <= 610 and np.nanmax(y) == 99.0 and not np.isnan(y).any()


def test_clock_event_reasons_are_drawn_as_throttled_or_not(tmp_path: Path) -> None:
    script = Script(tmp_path / "r", "r")
    script.state(0, gpu(0), everything=True)
    schema = script.schema(0, [G0], ["clock_event_reasons"])
    for second, bits in enumerate((0, 0x1, 0x4, 0x40, None)):  # idle is no reason; a power cap and heat are
        script.tick(second, schema, [{"clock_event_reasons": bits}])
    with script.open() as recording:
        (one,) = recording.series()
        line = charts.line(one, history.read(recording), "clock_event_reasons")
    assert (line.unit, charts.title(line.metric)) == ("%", "throttled")
    assert line.y.tolist()[:4] == [0, 0, 100, 100] and all(value != value for value in line.y[4:])


# Files


def kept(directory: Path) -> str:
    rich(directory).write()
    return str(directory)


async def test_pictures_are_files_of_their_kind(tmp_path: Path) -> None:
    name = kept(tmp_path / "r")
    drawn = await actions.plot(None, name, out=tmp_path / "x.svg")  # type: ignore[arg-type]
    assert drawn.metrics == ("gpu_util_percent", "memory_used_bytes", "power_mw") and drawn.devices == 2
    picture = (tmp_path / "x.svg").read_text()
    root = ET.fromstring(picture)
    texts = {"".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"power", "n1:gpu0", "n1:gpu1 SIM", EVIL} <= texts
    again = await actions.plot(None, name, out=tmp_path / "y.svg")  # type: ignore[arg-type]
    assert (tmp_path / "y.svg").read_text() == picture and again.path.endswith("y.svg")
    only = await actions.plot(None, name, out=tmp_path / "z.png", metric=["power_mw"], device=["gpu1"])  # type: ignore[arg-type]
    assert (only.metrics, only.devices) == (("power_mw",), 1)
    assert (tmp_path / "z.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


async def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    name = kept(tmp_path / "r")
    with pytest.raises(InvalidError, match=r"\.svg or \.png"):
        await actions.plot(None, name, out=tmp_path / "x.pdf")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="Did you mean power_mw"):
        await actions.plot(None, name, out=tmp_path / "x.svg", metric=["powr_mw"])  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="n1:gpu0"):
        await actions.plot(None, name, out=tmp_path / "x.svg", device=["n1:gpu7"])  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="cannot write"):
        await actions.report(None, name, out=tmp_path / "no" / "x.html")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="is no file"):
        await actions.report(None, name, out=tmp_path, force=True)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="is no file"):
        await actions.export(None, name, out=Path("-"))  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidError, match="is no file"):
        await actions.export(None, name, out=tmp_path / "pipe", force=True)  # type: ignore[arg-type]
    assert (tmp_path / "pipe").is_fifo(), "replaced what was no file of ours"
    (tmp_path / "pipe").unlink()
    with pytest.raises(InvalidError, match="seed of -1"):
        await actions.compare(None, name, name, seed=-1)  # type: ignore[arg-type]
    (tmp_path / "x.html").write_text("mine")
    with pytest.raises(RefusedError, match="exists"):
        await actions.report(None, name, out=tmp_path / "x.html")  # type: ignore[arg-type]
    assert (tmp_path / "x.html").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "x.html"]


class Served:
    """Stands where the host's own REST face has its swarm."""

    in_host = True


async def test_the_host_itself_loads_no_large_library(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no large libraries"):
        await actions.plot(Served(), "run", out=tmp_path / "x.svg")  # type: ignore[arg-type]
    assert await reading._worked(None, os.getpid) == os.getpid() != await reading._worked(Served(), os.getpid)


async def test_what_is_worked_on_apart_comes_back_whole_errors_too(tmp_path: Path) -> None:
    directory = Path(kept(tmp_path / "r"))
    assert await apart(reading._analysed, directory) == reading._analysed(directory)
    with pytest.raises(InvalidError, match="Did you mean power_mw") as refused:
        await apart(reading._compared, directory, directory, ["powr_mw"], 0.95, 0)
    assert refused.value.field == "metric"
    with pytest.raises(GswarmError, match="its process ended"):
        await apart(os._exit, 3)


async def test_every_export_says_the_same(tmp_path: Path) -> None:
    name = kept(tmp_path / "r")
    made = {}
    for form in ("csv", "json", "parquet", "perfetto"):
        made[form] = await actions.export(None, name, format=form, out=tmp_path / f"x.{form}")  # type: ignore[arg-type]
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    lines = [json.loads(line) for line in (tmp_path / "x.json").read_text().splitlines()]
    table = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert len(rows) == len(lines) == len(table) == made["csv"].rows == made["parquet"].rows == 80
    keys = [(row["device_id"], row["time"]) for row in table]
    assert keys == sorted(keys)
    by_key = {(row["device_id"], f"{row['time']:%Y-%m-%dT%H:%M:%S.000Z}"): row for row in table}
    for line in lines:
        row = by_key[line["device"], line["time"]]
        assert {key: row[key] for key in line if key not in ("device", "time")} == {
            key: value for key, value in line.items() if key not in ("device", "time")
        }
    events = json.loads((tmp_path / "x.perfetto").read_text())["traceEvents"]
    assert len(events) == made["perfetto"].rows


def test_a_sealed_recordings_own_parquet_says_the_same(tmp_path: Path) -> None:
    from gswarm.profiler.seal import seal

    directory = rich(tmp_path / "r").write()
    seal(directory)
    reading._exported(directory, "parquet", tmp_path / "x.parquet", False)
    (segment,) = directory.glob("metrics-*.parquet")
    sealed, ours = pq.read_table(segment), pq.read_table(tmp_path / "x.parquet")
    for name in ours.column_names:
        if name != "time":  # which says its own resolution
            assert sealed.schema.field(name).type == ours.schema.field(name).type
        assert sealed[name].to_pylist() == ours[name].to_pylist()


# The terminal


def lines_of(script: Script, width: int, metrics: tuple[str, ...]) -> tuple[str, ...]:
    with script.open() as recording:
        return terminal.draw(recording.series(), history.read(recording), metrics, width)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_braille_shows_the_shape_and_leaves_na_blank(tmp_path: Path, width: int) -> None:
    script = Script(tmp_path, "x")
    script.state(0, gpu(0), everything=True)
    schema = script.schema(0, [G0], ["gpu_util_percent"])
    for second in range(101):
        script.tick(
            second, schema, [{"gpu_util_percent": None if 40 <= second < 60 else 100.0 if second >= 60 else 0.0}]
        )
    head, upper, lower, *_ = lines_of(script, width, ("gpu_util_percent",))
    assert head == "utilisation, 0 to 100 %" and "mean" in lower
    assert all(len(line) <= width for line in (head, upper, lower))
    cells = re.findall("[\u2800-\u28ff]+", lower)[0]
    quarter = len(cells) // 5
    assert set(cells[:quarter]) == {"\u28c0"}, "zero is a line at the bottom"
    assert set(cells[-quarter:]) == {"\u28ff"}, "a hundred is full"
    assert "\u2800" in cells and cells.index("\u2800") / len(cells) == pytest.approx(0.4, abs=0.1)


def test_colour_and_unicode_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Out:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    out = Out()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawn = Drawn("", 1, ("m",), "", ("n1 \u28c0\u28ff  mean 4 °C",))
    assert drawn.lines() == ["n1 \x1b[36m\u28c0\u28ff\x1b[0m  mean 4 °C"]
    monkeypatch.setenv("NO_COLOR", "1")
    assert drawn.lines() == ["n1 \u28c0\u28ff  mean 4 °C"]
    out.encoding = "ascii"
    assert drawn.lines() == ["n1 :@  mean 4 ?C"]


def test_a_mark_stands_at_its_time(tmp_path: Path) -> None:
    script = Script(tmp_path, "x")
    script.state(0, gpu(0), mark(1, 50, "half"), mark(2, 95, "end\x1b[31m"), everything=True)
    schema = script.schema(0, [G0], ["gpu_util_percent"])
    for second in range(101):
        script.tick(second, schema, [{"gpu_util_percent": 1.0}])
    *_, half, end = lines_of(script, 80, ("gpu_util_percent",))
    assert half.endswith(("half", "^"))
    assert "\x1b" not in end and end.rstrip().endswith("^")
