"""Files that belong together, folders, full disks, and what writers that died leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from fairkern.artefacts import writing
from fairkern.artefacts.writing import new_folder, replacing, replacing_all, whole_folder

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


DIES = """
import os, sys
from pathlib import Path
from fairkern.artefacts.writing import replacing, replacing_all, whole_folder
folder = Path(sys.argv[1])
with whole_folder(folder / "new") as place, replacing_all([place / "a", place / "b"]) as (a, b):
    a.write_text("half")
    with replacing(folder / "file") as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    assert run(DIES, tmp_path).returncode == -9
    left = [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert len(left) == 2
    assert (tmp_path / "file").read_text() == "old"
    write(tmp_path / "file")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["file", "new/a"])
def test_a_living_writer_keeps_its_temporaries(name: str, tmp_path: Path) -> None:
    """Another thread is in the midst of it, with a file or a folder, while this one writes beside it."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with whole_folder((tmp_path / name).parent) as place, replacing(place / name.rpartition("/")[2]) as temporary:
            temporary.write_text("whole")
            begun.set()
            go_on.wait(20)

    other = threading.Thread(target=slow)
    other.start()
    assert begun.wait(20)
    write(tmp_path / "beside")
    go_on.set()
    other.join()
    assert (tmp_path / name).read_text() == "whole"
    assert names(tmp_path) == sorted(["beside", name.partition("/")[0]])


def test_a_writer_whose_new_file_was_taken_for_a_dead_ones_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = writing._lock, []

    def late(descriptor: int, *, wait: bool) -> bool:
        if wait and not taken:  # between making and locking it
            taken.extend(tmp_path.glob(".fairkern-*.tmp"))
            taken[0].unlink()
        return lock(descriptor, wait=wait)

    monkeypatch.setattr(writing, "_lock", late)
    write(tmp_path / "file")
    assert len(taken) == 1
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("there", [False, True])
def test_a_new_folder_is_whole_or_as_it_was(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new"
    if there:
        target.mkdir(mode=0o700)

    def half() -> None:
        with new_folder(target) as place:
            (place / "a").write_text("half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        half()
    assert names(tmp_path) == (["new"] if there else [])
    assert not there or names(target) == []
    done: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(os, "rename", lambda one, other: (done.append(Path(other).name), rename(one, other)))
    with new_folder(target) as place:
        (place / "a").write_text("1")
        (place / "within").mkdir()
        (place / "within" / "b").write_text("2")
        assert not there or names(target) == []
    assert done == ["sync", "sync", "new", "sync"]
    assert names(target) == ["a", "within"]
    assert not there or target.stat().st_mode & 0o777 == 0o700


def test_a_new_folder_takes_the_place_of_nothing_that_is_full(tmp_path: Path) -> None:
    target = tmp_path / "new"

    def late() -> None:
        with new_folder(target) as place:
            (place / "a").write_text("mine")
            target.mkdir()
            (target / "b").write_text("others'")  # meanwhile

    with pytest.raises(OSError, match="not empty"):
        late()
    assert names(tmp_path) == ["new"]
    assert names(target) == ["b"]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Other names, links of ours, and what other people may not touch."""
    other = [".fairkern-1.tmp", ".fairkern-0123456789abcdef.tmp.txt", "x.fairkern-0123456789abcdef.tmp"]
    for name in other:
        (tmp_path / name).touch()
    (tmp_path / ".fairkern-0123456789abcdef.tmp").symlink_to(tmp_path / other[0])
    (tmp_path / ".fairkern-0123456789abcdee.tmp").mkdir()
    (tmp_path / ".fairkern-0123456789abcdee.tmp" / "a").touch()
    write(tmp_path / "file")
    assert names(tmp_path) == sorted([*other, ".fairkern-0123456789abcdef.tmp", "file"])


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_lock", lambda descriptor, *, wait: False)
    (tmp_path / ".fairkern-0123456789abcdef.tmp").touch()
    write(tmp_path / "file")
    assert names(tmp_path) == [".fairkern-0123456789abcdef.tmp", "file"]


def test_files_that_belong_together_are_all_on_the_disk_before_one_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda one, other: (done.append(Path(other).name), rename(one, other)))
    with replacing_all([tmp_path / "a", tmp_path / "b"]) as (a, b):
        a.write_text("1")
        b.write_text("2")
    assert done == ["sync", "sync", "a", "b", "sync"]


@pytest.mark.parametrize("fails", [1, 2])
def test_no_file_is_replaced_where_one_cannot_be_written(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk says that it is full when the file is synced, as some file systems do."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)

    def both() -> None:
        with replacing_all([tmp_path / "a", tmp_path / "b"]) as (a, b):
            a.write_text("new")
            b.write_text("new")

    with pytest.raises(OSError, match=rf"No space left on device.*{tmp_path}"):
        both()
    assert [(name, (tmp_path / name).read_text()) for name in names(tmp_path)] == [("a", "old"), ("b", "old")]


def test_a_folder_in_the_place_of_a_file_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with (
        pytest.raises(IsADirectoryError, match="expected a file to write to"),
        replacing_all([tmp_path / "a", tmp_path / "b"]),
    ):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["b"]


@pytest.mark.skipif(os.name != "posix", reason="there are no locks")
def test_of_two_writers_the_last_ones_files_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, between, other = os.replace, threading.Event(), ThreadPoolExecutor(1)

    def both(text: str) -> None:
        with replacing_all([tmp_path / "a", tmp_path / "b"]) as temporaries:
            for temporary in temporaries:
                temporary.write_text(text)

    def slow(one: Path, target: Path) -> None:
        replace(one, target)
        if target.name == "a" and not between.is_set():
            between.set()
            waiting.append(other.submit(both, "theirs"))
            time.sleep(0.05)  # in which the other one would rename both

    waiting: list[Future[None]] = []
    monkeypatch.setattr(os, "replace", slow)
    both("ours")
    waiting[0].result(timeout=30)
    other.shutdown()
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["theirs", "theirs"]


def test_a_folder_that_another_writer_has_made_meanwhile_gets_our_files(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "folder") as ours, whole_folder(tmp_path / "folder") as theirs:
        for place, text in ((ours, "ours"), (theirs, "theirs")):
            (place / "a").write_text(text)
        (theirs / "notes").write_text("theirs")
    assert names(tmp_path) == ["folder"]
    assert [(tmp_path / "folder" / name).read_text() for name in names(tmp_path / "folder")] == ["ours", "theirs"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop"):
        with pytest.raises(OSError, match="expected a file to write to"), replacing(tmp_path / name):
            pytest.fail("the block ran")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "loop").is_symlink()
    assert names(tmp_path) == ["loop", "pipe"]


LIMITED = """
import resource, sys
import numpy as np, torch
from pathlib import Path
import fairkern as fk
from fairkern.artefacts import save_scores, write_json
from tests.synthetic import chain, random_scores

model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
units = fk.trace(model, torch.randn(2, 4))

def scores(path, seed):
    save_scores(random_scores(chain((64, 64)).build(), seed=seed), path)

def report(path, seed):
    write_json(path, "report", {"values": np.random.default_rng(seed).random(500)})

def small(path, seed):
    plan = units.plan(keep_params=0.5, seed=seed)
    fk.save_pruned(fk.apply(model, plan), plan, path)

def files():
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

folder = Path(sys.argv[1])
for save in (scores, report, small):
    for old in (False, True):
        if old:
            save(folder / save.__name__, 0)
        before = files()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1200, -1))
        try:
            save(folder / save.__name__, 1)
        except OSError as error:
            assert "File too large" in str(error) and str(folder) in str(error), error
        else:
            raise SystemExit("written")
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        assert files() == before
"""


def test_files_that_outgrow_what_the_system_gives(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing stops in the midst of the bytes."""
    done = run(LIMITED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["report", "scores", "small"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError("no number")])
def test_what_the_block_raises_passes_unchanged(error: BaseException, tmp_path: Path) -> None:
    for place in (replacing(tmp_path / "a"), whole_folder(tmp_path / "b")):
        with pytest.raises(type(error)) as caught, place:
            raise error
        assert caught.value is error
    assert names(tmp_path) == []


@pytest.mark.parametrize("inside", [(), ("other",)])
def test_a_folder_that_exists_stays_itself(inside: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o750)
    for name in inside:
        (tmp_path / "folder" / name).touch()
    before = (tmp_path / "folder").stat()
    with whole_folder(tmp_path / "folder") as place:
        write(place / "a")
    after = (tmp_path / "folder").stat()
    assert (before.st_ino, before.st_mode, before.st_uid) == (after.st_ino, after.st_mode, after.st_uid)
    assert names(tmp_path / "folder") == sorted([*inside, "a"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: path.touch(), NotADirectoryError, "is a file"),
    ],
)
def test_where_no_folder_can_be(
    make: Callable[[Path], None], error: type[OSError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "above").mkdir()
    make(tmp_path / "above" / "folder")
    with pytest.raises(error, match=message), whole_folder(tmp_path / "above" / "folder"):
        pytest.fail("the block ran")
