"""Where models come from: directories within their limits, and HTTP servers that cut, lie, change and redirect."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gswarm.cluster.types import Progress
from gswarm.errors import ForbiddenError, GswarmError, InvalidError, NotFoundError, UnreachableError
from gswarm.model.sources import http
from gswarm.model.sources.file import FileSource
from gswarm.model.sources.http import HttpSource
from gswarm.model.sources.source import Cancelled, check, open_source, simulated_size
from gswarm.model.types import Placement, download_done
from tests.support.cluster import Cluster, cluster, seen

DATA = os.urandom(3_000_000)
CUT = 1_234_567


class Server(ThreadingHTTPServer):
    """One file at every path. It is told how to misbehave, and keeps a log."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.tag = DATA, '"one"'
        self.cuts: list[int] = []
        """After how many bytes each of the next answers breaks off."""
        self.changes: bytes | None = None
        """What the file is after the next cut."""
        self.heeds_range, self.heeds_if_range, self.shift = True, True, 0
        self.status = {"HEAD": 200, "GET": 200}
        self.length: int | None = -1
        """What GET announces; -1: the truth, None: nothing."""
        self.headers: dict[str, str] = {}
        self.redirect = ""
        self.gate = threading.Event()
        self.gate.set()
        self.log: list[tuple[str, str, int]] = []
        """Method, Range and bytes sent, of each request."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}/models/tiny.gguf"

    @property
    def ranges(self) -> list[str]:
        return [asked for method, asked, _ in self.log if method == "GET"]

    @property
    def sent(self) -> int:
        return sum(sent for _, _, sent in self.log)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.server.log.append(("HEAD", "", 0))
        self._start(self.server.status["HEAD"], {"Content-Length": str(len(self.server.data))})

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        if server.redirect and self.path != server.redirect:
            self._start(302, {"Location": server.redirect, "Content-Length": "0"})
            return
        data, status, extra = server.data, server.status["GET"], {"ETag": server.tag}
        same = not server.heeds_if_range or self.headers.get("If-Range") == server.tag
        if asked and server.heeds_range and same and status == 200:
            start = int(asked.removeprefix("bytes=").removesuffix("-")) + server.shift
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
            if not data:
                status, extra["Content-Range"] = 416, f"bytes */{len(server.data)}"
        if server.length is not None:
            extra["Content-Length"] = str(len(data) if server.length < 0 else server.length)
        cut = server.cuts.pop(0) if server.cuts else None
        if cut is not None and server.changes is not None:
            server.data, server.tag, server.changes = server.changes, '"two"', None
        body = data[:cut]
        server.log.append(("GET", asked, len(body) if status in (200, 206) else 0))
        self._start(status, extra | server.headers)
        if status in (200, 206):
            with contextlib.suppress(OSError):
                self.wfile.write(body[: len(body) // 2])
                server.gate.wait(60)
                self.wfile.write(body[len(body) // 2 :])
        self.close_connection = cut is not None or server.length != -1

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "PAUSE_S", 0.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "part-0"


def fetch(url: str, target: Path) -> list[int]:
    """Download to `target`; what was told of its progress."""
    source, told = HttpSource(url), list[int]()
    (file,) = source.files()
    source.fetch(file, target, told.append, threading.Event())
    return told


def test_a_file_arrives_whole_with_its_name_size_and_progress(server: Server, target: Path) -> None:
    (file,) = HttpSource(server.url).files()
    assert (file.path, file.size_bytes) == ("tiny.gguf", len(DATA))
    told = fetch(server.url, target)
    assert target.read_bytes() == DATA
    assert told == sorted(told) and len(told) > 2 and told[-1] == len(DATA)


@pytest.mark.parametrize("cuts", [[CUT], [CUT, 100, 700_001], [1]], ids=str)
def test_after_a_cut_only_the_missing_bytes_are_fetched(server: Server, target: Path, cuts: list[int]) -> None:
    server.cuts = list(cuts)
    told = fetch(server.url, target)
    assert target.read_bytes() == DATA
    assert server.ranges == ["", *(f"bytes={sum(cuts[: n + 1])}-" for n in range(len(cuts)))]
    assert server.sent == len(DATA)
    assert told[-1] == len(DATA)


def test_a_server_that_stays_away_ends_it_and_the_next_try_goes_on(server: Server, target: Path) -> None:
    server.cuts = [CUT] + [0] * (http.TRIES - 1)
    with pytest.raises(UnreachableError, match=r"breaks off.*Try again; what has arrived is kept"):
        fetch(server.url, target)
    assert target.stat().st_size == CUT
    fetch(server.url, target)
    assert target.read_bytes() == DATA
    assert server.ranges[-1] == f"bytes={CUT}-" and server.sent == len(DATA)


def test_an_agent_killed_before_it_had_looked_at_the_whole_file_fetches_nothing_again(
    server: Server, target: Path
) -> None:
    fetch(server.url, target)
    fetch(server.url, target)
    assert target.read_bytes() == DATA and server.sent == len(DATA)


@pytest.mark.parametrize("heeds_if_range", [True, False], ids=["heeds If-Range", "ignores If-Range"])
@pytest.mark.parametrize("size", [len(DATA), CUT, CUT - 1])
def test_a_file_that_changed_since_the_cut_is_never_glued(
    server: Server, target: Path, heeds_if_range: bool, size: int
) -> None:
    server.cuts, server.changes, server.heeds_if_range = [CUT], os.urandom(size), heeds_if_range
    fetch(server.url, target)
    assert target.read_bytes() == server.data and server.tag == '"two"'


def test_a_server_that_ignores_ranges_sends_all_of_it_again(server: Server, target: Path) -> None:
    server.cuts, server.heeds_range = [CUT], False
    fetch(server.url, target)
    assert target.read_bytes() == DATA


def test_a_range_that_starts_elsewhere_is_not_appended(server: Server, target: Path) -> None:
    server.cuts, server.shift = [CUT], 7
    fetch(server.url, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("tag", ["", 'W/"one"'])
def test_without_a_promise_of_the_same_bytes_it_starts_over(server: Server, target: Path, tag: str) -> None:
    server.cuts, server.tag = [CUT], tag
    fetch(server.url, target)
    assert target.read_bytes() == DATA and server.ranges == ["", ""]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_what_a_server_refuses_is_said(server: Server, target: Path, method: str) -> None:
    url = server.url.replace("://", "://ann:secret@") + "?token=secret"
    server.status["HEAD"] = 405
    server.status[method] = 404
    server.status["GET"] = 404
    with pytest.raises(NotFoundError, match=r"models/tiny\.gguf does not exist") as not_found:
        fetch(url, target)
    server.status[method] = 500
    with pytest.raises(GswarmError, match=r"models/tiny\.gguf cannot be read: HTTP 500") as failed:
        fetch(url, target)
    assert "secret" not in f"{not_found.value}{failed.value}"
    assert not target.exists()


def test_a_server_that_is_not_there_is_said(server: Server) -> None:
    with pytest.raises(UnreachableError, match="cannot be reached"):
        HttpSource("http://127.0.0.1:1/x").files()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        HttpSource(f"http://{'a' * 64}.example/x").files()


def test_fewer_bytes_than_promised_are_not_taken_for_the_file(server: Server, target: Path) -> None:
    server.length, server.heeds_range = len(DATA) + 1, False
    with pytest.raises(UnreachableError, match="breaks off"):
        fetch(server.url, target)


def test_a_cut_is_noticed_where_only_head_tells_the_size(server: Server, target: Path) -> None:
    server.length, server.cuts = None, [CUT]
    fetch(server.url, target)
    assert target.read_bytes() == DATA and server.sent == len(DATA)


def test_what_is_compressed_unasked_is_not_stored_as_the_model(server: Server, target: Path) -> None:
    server.headers["Content-Encoding"] = "gzip"
    with pytest.raises(GswarmError, match="compressed"):
        fetch(server.url, target)


def test_a_redirect_is_followed_and_the_name_is_the_one_asked_for(server: Server, target: Path) -> None:
    server.redirect, server.cuts = "/elsewhere/0123abcd", [CUT]
    fetch(server.url, target)
    assert target.read_bytes() == DATA and server.sent == len(DATA)
    assert HttpSource(server.url).files()[0].path == "tiny.gguf"
    server.redirect = "file:///etc/passwd"
    with pytest.raises(UnreachableError):
        fetch(server.url, target.with_name("other"))


def test_what_is_no_longer_wanted_stops_and_can_be_gone_on_with(server: Server, target: Path) -> None:
    stop, source = threading.Event(), HttpSource(server.url)
    (file,) = source.files()
    with pytest.raises(Cancelled):
        source.fetch(file, target, lambda done: stop.set(), stop)
    held = target.stat().st_size
    assert 0 < held < len(DATA)
    fetch(server.url, target)
    assert target.read_bytes() == DATA and server.ranges[-1] == f"bytes={held}-"


# file://


def names(path: Path, *roots: Path) -> list[str]:
    return [file.path for file in FileSource(path, roots or None).files()]


def test_a_directory_is_all_its_files_but_hidden_ones(tmp_path: Path) -> None:
    for name in ("config.json", "sub/weights.bin", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    assert names(tmp_path) == ["config.json", "sub/weights.bin"]
    assert names(tmp_path / "sub/weights.bin") == ["weights.bin"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidError, match="has no files"):
        names(tmp_path / "empty")
    with pytest.raises(NotFoundError, match="does not exist on this node"):
        names(tmp_path / "nowhere")


def test_with_roots_nothing_outside_them_is_read(tmp_path: Path) -> None:
    inside, secret = tmp_path / "inside", tmp_path / "secret"
    (inside / "model").mkdir(parents=True)
    (inside / "model/weights.bin").write_bytes(b"x")
    secret.write_bytes(b"key")
    assert names(inside / "model", inside) == ["weights.bin"]
    (inside / "straight").symlink_to(secret)
    for path in (secret, inside / "../secret", inside / "straight", tmp_path / "inside-not", tmp_path / "nowhere"):
        with pytest.raises(ForbiddenError, match=r"Name its directory in client\.file_roots"):
            names(path, inside)
    (inside / "model/link.bin").symlink_to(secret)
    with pytest.raises(ForbiddenError, match=r"link\.bin may not be read"):
        names(inside / "model", inside)


def test_a_hub_cache_links_its_snapshot_to_blobs_beside_it(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0123").write_bytes(b"weights")
    (tmp_path / "snapshots/abc").mkdir(parents=True)
    (tmp_path / "snapshots/abc/model.bin").symlink_to("../../blobs/0123")
    for roots in (None, (tmp_path,)):
        source = FileSource(tmp_path / "snapshots/abc", roots)
        (file,) = source.files()
        local = source.local(file)
        assert file.size_bytes == 7 and local is not None and local.read_bytes() == b"weights"


def test_a_path_is_written_as_in_any_file_url(tmp_path: Path) -> None:
    directory = tmp_path / "my models #1"
    directory.mkdir()
    (directory / "a.bin").write_bytes(b"x")
    assert [file.path for file in open_source(directory.as_uri(), file_roots=None).files()] == ["a.bin"]
    with pytest.raises(InvalidError, match="Write %23 for #"):
        check(f"file://{directory}")


NO_SOURCE = [
    "",
    "x",
    "/models/x",
    "ftp://h/x",
    "file:x",
    "file://elsewhere/x",
    "file:///a%00b",
    "file:///a\0b",
    "http:",
]
NO_SOURCE += ["https:///x", "http://[::1/x", "http://h:99999/x", "http://h:port/x", "simulated:", "simulated:0"]
NO_SOURCE += ["simulated:lots", "simulated:-1GiB"]


@pytest.mark.parametrize("text", NO_SOURCE, ids=ascii)
def test_what_is_no_source_is_refused_before_a_node_is_asked(text: str) -> None:
    with pytest.raises(InvalidError) as error:
        check(text)
    assert error.value.field == "source"


def test_a_simulated_model_has_the_size_it_names() -> None:
    assert simulated_size("simulated:16GiB") == 16 << 30


# All the way to a node's store


@pytest.fixture
async def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("GSWARM_SHM_DIR", str(tmp_path / "shm"))
    async with cluster(tmp_path / "state") as running:
        yield running


async def download(running: Cluster, source: str, name: str = "m") -> Placement:
    (asked,) = await running.swarm.model.download(name, source=source, node=["n1"])
    return await running.swarm.wait(download_done, asked, timeout=30)


async def test_a_download_tells_how_far_it_is_and_is_stored_once(swarm: Cluster, server: Server) -> None:
    async with swarm.agent("n1") as agent, swarm.swarm.mirror((Placement,), samples=False) as mirror:
        server.gate.clear()
        (asked,) = await swarm.swarm.model.download("m", source=server.url, node=["n1"])
        row = await seen(
            mirror, lambda: mirror.rows(Placement).get(asked.id), lambda p: p is not None and p.bytes_done > 0
        )
        assert row is not None and 0 < row.bytes_done < row.bytes_total == len(DATA)
        server.gate.set()
        done = await swarm.swarm.wait(download_done, asked, timeout=30)
        assert (done.bytes_done, done.bytes_shared) == (len(DATA), 0)
        assert (await download(swarm, f"{server.url}?again", "twin")).bytes_shared == len(DATA)
        store = agent.models.store
        assert (store.directory("m", "v1") / "tiny.gguf").read_bytes() == DATA
        assert (store.directory("m", "v1") / "tiny.gguf").samefile(store.directory("twin", "v1") / "tiny.gguf")
        path = store.directory("m", "v1") / "tiny.gguf"
        path.chmod(0o600)
        path.write_bytes(b"damaged")
        await swarm.swarm.model.delete("m")
        again = await download(swarm, server.url)
        assert (store.directory("m", again.version) / "tiny.gguf").read_bytes() == DATA, "not the twin's damaged bytes"
        with pytest.raises(GswarmError, match="twin@v1 is not whole on this node"):
            store.check("twin", "v1")


async def test_deleting_a_model_half_downloaded_leaves_nothing(swarm: Cluster, server: Server) -> None:
    async with swarm.agent("n1") as agent, swarm.swarm.mirror((Placement,), samples=False) as mirror:
        server.cuts = [CUT] + [0] * (http.TRIES - 1)
        with pytest.raises(GswarmError, match="what has arrived is kept"):
            await download(swarm, server.url)
        root = agent.models.store.root
        assert sum(path.stat().st_size for path in root.rglob("part-*")) >= CUT
        await swarm.swarm.model.delete("m")
        await seen(mirror, lambda: len(mirror.rows(Placement)), lambda count: count == 0)
        await download(swarm, "simulated:1MiB", "later")  # the node has heard of the deletion before this
        assert [path for path in root.rglob("*") if path.is_file()] == []


async def test_no_source_ends_the_agent(swarm: Cluster, server: Server, tmp_path: Path) -> None:
    async with swarm.agent("n1") as agent:
        base = server.url.rpartition("/")[0]
        for number, name in enumerate(("%2e%2e", "a%00b", "a%5Cb", "a%0Ab")):
            with pytest.raises(GswarmError, match="cannot be a model's file"):
                await download(swarm, f"{base}/{name}", f"hostile{number}")
        assert server.ranges == [], "refused before anything is fetched"
        directory = tmp_path / "bytes"
        directory.mkdir()
        Path(os.fsdecode(os.fsencode(directory) + b"/\xff.bin")).write_bytes(b"x")
        with pytest.raises(GswarmError, match="cannot be a model's file"):
            await download(swarm, directory.as_uri(), "bytes")
        part = agent.models.store.making("full", "v1") / "part-0"
        part.symlink_to("/dev/full")
        with pytest.raises(GswarmError, match="the model store's disk is full"):
            await download(swarm, server.url, "full")
        assert (await download(swarm, server.url, "good")).bytes_done == len(DATA)


async def test_why_a_download_failed_is_told_once(swarm: Cluster) -> None:
    async with swarm.agent("n1"):
        shown: list[Progress] = []
        (asked,) = await swarm.swarm.model.download("m", source="file:///nowhere", node=["n1"])
        with pytest.raises(GswarmError, match="/nowhere does not exist on this node"):
            await swarm.swarm.wait(download_done, asked, timeout=30, show=shown.append)
        assert not [progress for progress in shown if "nowhere" in progress.message]
