"""A node's model store: files kept once; nothing lost or left by deletion, damage, crashes, a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.errors import ExhaustedError, GswarmError, InvalidError, NotFoundError
from gswarm.model.store import ModelStore, check_path
from gswarm.v1.models_pb2 import ModelFile

Files = dict[str, bytes]


def digest_of(data: bytes) -> str:
    return str(blake3(data).hexdigest())


def bring(store: ModelStore, model: str, files: Files, version: str = "v1") -> list[ModelFile]:
    """Copy files into the store, all but their last step."""
    making, found = store.making(model, version), []
    for path, data in files.items():
        source = store.root.parent / "source"
        source.write_bytes(data)
        store.copy_in(source, digest_of(data), making, lambda done: None)
        found.append(ModelFile(path=path, size_bytes=len(data), digest=digest_of(data)))
    return found


def add(store: ModelStore, model: str, files: Files) -> None:
    store.put_version(model, "v1", bring(store, model, files))


def read(store: ModelStore, model: str) -> Files:
    """What a backend would load."""
    directory = store.directory(model, "v1")
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def content(root: Path) -> Files:
    """Every file below, with its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def blobs(store: ModelStore) -> set[str]:
    return {path.name for path in store.root.glob("blobs/*/*")}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def damage(store: ModelStore, data: bytes, now: bytes) -> None:
    """What a failing disk does: other bytes in the same file."""
    path = store.blob(digest_of(data))
    path.chmod(0o600)
    path.write_bytes(now)


def test_the_same_weights_under_two_names_lie_on_disk_once(store: ModelStore) -> None:
    weights = os.urandom(1 << 20)
    add(store, "one", {"config.json": b"{}", "model.bin": weights})
    add(store, "two", {"sub/weights.bin": weights})
    on_disk = {path.stat().st_ino: path.stat().st_blocks * 512 for path in store.root.rglob("*") if path.is_file()}
    assert (1 << 20) <= sum(on_disk.values()) < (1 << 20) + (64 << 10)
    store.delete_version("one", "v1")
    assert read(store, "two") == {"sub/weights.bin": weights}
    assert blobs(store) == {digest_of(weights)}, "config.json went with the only model that had it"


CONTENTS = st.dictionaries(
    st.sampled_from(["a", "b/a", "b/c", "weights.bin"]), st.sampled_from([b"", b"x", b"yy", b"z" * 5000]), min_size=1
)
STEPS = st.lists(st.tuples(st.sampled_from(["m1", "m2", "m3"]), st.none() | CONTENTS), max_size=12)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_what_is_listed_can_be_read_and_nothing_else_is_kept(steps: list[tuple[str, Files | None]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = ModelStore(Path(root) / "store")
        expected: dict[str, Files] = {}
        for model, files in steps:
            if files is None:
                expected.pop(model, None)
                store.delete_version(model, "v1")
            else:
                expected[model] = files
                add(store, model, files)
            assert store.versions() == sorted((name, "v1") for name in expected)
            for name, wanted in expected.items():
                assert read(store, name) == wanted
                told = store.check(name, "v1", read=True)
                assert {f.path: f.digest for f in told.files} == {p: digest_of(d) for p, d in wanted.items()}
                assert told.size_bytes == sum(map(len, wanted.values()))
        store.collect()
        assert blobs(store) == {digest_of(data) for files in expected.values() for data in files.values()}


def test_deleting_one_model_takes_nothing_from_another_under_way(store: ModelStore) -> None:
    add(store, "old", {"shared": b"in both", "own": b"only in old"})
    files = bring(store, "new", {"shared": b"in both", "first": b"only in new"})
    store.delete_version("old", "v1")
    store.put_version("new", "v1", files)
    assert read(store, "new") == {"shared": b"in both", "first": b"only in new"}
    assert blobs(store) == {digest_of(b"in both"), digest_of(b"only in new")}


@pytest.mark.parametrize("now", [b"wEights", b"weig", None], ids=["bytes", "cut", "gone"])
def test_damage_is_told_with_the_file_and_mended_by_the_next_download(store: ModelStore, now: bytes | None) -> None:
    add(store, "m", {"config.json": b"{}", "model.bin": b"weights"})
    add(store, "twin", {"model.bin": b"weights"})
    if now is None:
        store.blob(digest_of(b"weights")).unlink()
    else:
        damage(store, b"weights", now)
    with pytest.raises(
        GswarmError, match=r"m@v1 is not whole on this node: model\.bin is .*Delete it on this node, then download"
    ):
        store.check("m", "v1", read=True)
    add(store, "m", {"config.json": b"{}", "model.bin": b"weights"})
    assert read(store, "m") == {"config.json": b"{}", "model.bin": b"weights"}
    store.check("m", "v1", read=True)
    if now is not None:  # the other name still has the damaged bytes: it must not pass for whole
        with pytest.raises(GswarmError, match="twin@v1 is not whole"):
            store.check("twin", "v1")


def test_a_damaged_blob_is_never_shared(store: ModelStore) -> None:
    add(store, "m", {"model.bin": b"weights"})
    damage(store, b"weights", b"wEights")
    add(store, "other", {"model.bin": b"weights"})
    assert read(store, "other") == {"model.bin": b"weights"}


def test_what_is_cut_short_is_told_without_reading_all_of_it(store: ModelStore) -> None:
    add(store, "m", {"model.bin": b"weights"})
    damage(store, b"weights", b"weig")
    with pytest.raises(GswarmError, match=r"model\.bin is damaged"):
        store.check("m", "v1")


def test_a_damaged_manifest_is_told(store: ModelStore) -> None:
    add(store, "m", {"model.bin": b"weights"})
    (store.root / "versions/m/v1.json").write_text("[{")
    with pytest.raises(GswarmError, match="its manifest is damaged"):
        store.check("m", "v1")
    with pytest.raises(NotFoundError, match="m@v2 is not on this node"):
        store.check("m", "v2")


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_model_store import ModelStore, add, bring
root, event, number, deed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
store = ModelStore(root)
def hook(name, arguments):
    global number
    if name == event and (name != "open" or str(root) in str(arguments[:1])):
        number -= 1
        if number < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
if deed == "add":
    add(store, "m", {"a": b"new" * 1000, "sub/b": b"also new"})
else:
    store.delete_version("m", "v1")
"""


@pytest.mark.parametrize("event", ["os.link", "os.rename", "open", "os.remove", "os.mkdir", "os.rmdir"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("deed", ["add", "delete"])
def test_a_kill_at_any_step_leaves_nothing_half(tmp_path: Path, event: str, number: int, deed: str) -> None:
    root = tmp_path / "store"
    add(ModelStore(root), "m", {"a": b"old", "gone": b"old too"})
    done = subprocess.run([sys.executable, "-c", KILLED, root, event, str(number), deed], cwd=Path(__file__).parents[1])
    assert done.returncode in (-signal.SIGKILL, 0)
    store = ModelStore(root)
    store.clear_incoming()
    assert all(digest_of(path.read_bytes()) == path.name for path in root.glob("blobs/*/*")), "a part taken for a blob"
    assert not list(root.rglob("copy-*"))
    try:
        store.check("m", "v1", read=True)
    except GswarmError:
        pass
    else:
        assert set(read(store, "m")) in ({"a", "gone"}, {"a", "sub/b"})
    if deed == "add":
        add(store, "m", {"a": b"new" * 1000, "sub/b": b"also new"})
        assert read(store, "m") == {"a": b"new" * 1000, "sub/b": b"also new"}
        assert list(root.glob("incoming/*/*")) == []
    for model, version in store.versions():
        store.delete_version(model, version)
    store.collect()
    assert content(root) == {}, "all of it is found and deleted"


def test_a_version_that_was_never_finished_is_found_and_deleted(store: ModelStore) -> None:
    bring(store, "m", {"a": b"data"})
    (store.making("m", "v1") / "part-1").write_bytes(b"half a fi")
    again = ModelStore(store.root)
    again.clear_incoming()
    assert content(store.root / "incoming") != {}, "it is gone on with"
    assert again.versions() == [("m", "v1")]
    again.delete_version("m", "v1")
    assert content(store.root) == {}


def test_a_failure_frees_what_was_copied_and_keeps_what_can_be_resumed(store: ModelStore) -> None:
    add(store, "kept", {"a": b"kept"})
    bring(store, "m", {"a": b"data"})
    (store.making("m", "v1") / "part-1").write_bytes(b"half a fi")
    store.give_up("m", "v1")
    assert blobs(store) == {digest_of(b"kept")}
    assert content(store.root / "incoming") == {"m/v1/part-1": b"half a fi"}


@pytest.mark.parametrize("function", ["sendfile", "link", "mkdir"])
@pytest.mark.parametrize("successes", [0, 1, 2])
def test_a_full_disk_leaves_the_store_as_it_was(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, function: str, successes: int
) -> None:
    add(store, "m", {"a": b"old", "sub/b": b"old too"})
    before = content(store.root)
    real, left = getattr(os, function), successes

    def full(*arguments: object, **named: object) -> object:
        nonlocal left
        left -= 1
        if left < 0 and (function == "sendfile" or "/incoming" in f"{arguments}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    store.making("m", "v1")
    with monkeypatch.context() as patched:
        patched.setattr(os, function, full)
        with pytest.raises(ExhaustedError, match=r"disk is full.*Delete models"):
            add(store, "m", {"a": b"new", "sub/b": b"also new", "sub/sub/c": b"more"})
    store.give_up("m", "v1")
    assert content(store.root) == before
    store.check("m", "v1", read=True)


def test_a_full_disk_does_not_keep_anyone_from_deleting(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    add(store, "m", {"a": b"data"})
    bring(store, "n", {"a": b"other"})
    monkeypatch.setattr(os, "mkdir", full)
    store.give_up("n", "v1")
    store.give_up("never-begun", "v1")
    store.delete_version("m", "v1")
    assert content(store.root) == {}


def test_more_than_there_is_room_for_is_refused_before_it_is_copied(store: ModelStore) -> None:
    huge = store.root.parent / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(ExhaustedError, match="too full"):
        store.copy_in(huge, "0" * 64, store.making("m", "v1"), lambda done: None)
    assert content(store.root) == {}


def test_a_file_that_changes_while_it_is_copied_is_not_stored(store: ModelStore) -> None:
    source = store.root.parent / "growing"
    source.write_bytes(b"one")
    with pytest.raises(InvalidError, match="changed while it was copied"):
        store.copy_in(source, digest_of(b"other"), store.making("m", "v1"), lambda done: None)
    assert content(store.root) == {}


OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "..", ".", "", "a\0b", "\0", "a\\..\\b", "a\nb", "\udcff.bin"]


@pytest.mark.parametrize("path", OUTSIDE, ids=ascii)
def test_a_file_that_would_lie_outside_is_refused(store: ModelStore, path: str) -> None:
    with pytest.raises(InvalidError, match="cannot be a model's file"):
        check_path(path)


def test_a_refused_file_leaves_the_version_as_it_was(store: ModelStore) -> None:
    add(store, "m", {"a": b"old"})
    with pytest.raises(InvalidError):
        add(store, "m", {"a": b"new", "../../../../escaped": b"x"})
    assert read(store, "m") == {"a": b"old"}
    assert not list(store.root.parent.rglob("escaped"))


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "a/b", "a\0b"], ids=ascii)
def test_names_that_would_leave_the_store_are_refused(store: ModelStore, name: str) -> None:
    for use in (store.directory, store.making, store.check, store.delete_version):
        for model, version in ((name, "v1"), ("m", name)):
            with pytest.raises(InvalidError):
                use(model, version)
    with pytest.raises(InvalidError, match="no BLAKE3 digest"):
        store.blob(f"../{name}")
