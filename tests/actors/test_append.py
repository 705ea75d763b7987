"""Appending to the actors file: in one step, or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cgw.actors.append import append_entry
from cgw.actors.static import load_static_actors
from cgw.actors.tokens import build_entry, hash_token
from cgw.errors import ConfigError
from cgw.file_lock import hold_folder_lock


def build(actor_id: str) -> str:
    return build_entry(actor_id, "", hash_token(actor_id))


def read_ids(path: Path) -> list[str]:
    return [actor.id for actor in load_static_actors(path, percentage=50, interval_ms=10_000).actors]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one actor, alone in its folder."""
    path = tmp_path / "actors.toml"
    path.write_text("# mine\n" + build("first"))
    return path


def test_an_entry_is_appended(path: Path) -> None:
    """What was there stays as it was, also without a line break at its end; nothing else is left in the folder."""
    old = path.read_text().rstrip("\n")
    path.write_text(old)
    append_entry(path, build("second"))
    assert path.read_text().startswith(f"{old}\n\n[[actor]]")
    assert read_ids(path) == ["first", "second"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "", "# only a comment"])
def test_a_file_without_actors_gets_its_first(tmp_path: Path, old: str | None) -> None:
    """The file may be missing, empty, or have comments only."""
    path = tmp_path / "actors.toml"
    if old is not None:
        path.write_text(old)
    append_entry(path, build("first"))
    assert read_ids(path) == ["first"]
    assert path.read_text().startswith(old or "")


def test_mode_and_link_are_kept(path: Path) -> None:
    """The file keeps its mode; a symbolic link to it stays one."""
    path.chmod(0o640)
    link = path.with_name("link.toml")
    link.symlink_to(path.name)
    append_entry(link, build("second"))
    assert link.is_symlink()
    assert path.stat().st_mode & 0o7777 == 0o640
    assert read_ids(path) == ["first", "second"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_is_kept(path: Path) -> None:
    """The file of a service's user stays its own when root appends."""
    os.chown(path, 12345, 23456)
    append_entry(path, build("second"))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


@pytest.mark.parametrize(
    ("old", "entry", "what"),
    [
        ('[[actor]]\nid = "a"\n', build("b"), "actor[0]"),
        ("not = [TOML", build("b"), "not valid TOML"),
        ('text = """', build("b"), "not valid TOML"),
        (build("a"), build("a"), "actor[1].id"),
        (build("a"), "[[actor]\n", "not valid TOML"),
    ],
)
def test_no_broken_file_is_written(tmp_path: Path, old: str, entry: str, what: str) -> None:
    """A file that is wrong already, or would be, stays byte for byte; each problem says so."""
    path = tmp_path / "actors.toml"
    path.write_text(old)
    before = path.stat()
    with pytest.raises(ConfigError) as caught:
        append_entry(path, entry)
    assert any(what in problem for problem in caught.value.problems)
    assert all(problem.endswith("nothing was written to the file") for problem in caught.value.problems)
    assert path.read_text() == old
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["no folder", "a folder", "a pipe"])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, kind: str) -> None:
    """A path that cannot become a file is named, with the reason; a pipe is not waited for."""
    path = tmp_path / "folder" / "actors.toml"
    if kind != "no folder":
        path.parent.mkdir()
        (path.mkdir if kind == "a folder" else lambda: os.mkfifo(path))()
    with pytest.raises(ConfigError, match="cannot be written: ") as caught:
        append_entry(path, build("a"))
    assert str(caught.value).startswith(f"{path}: ")


def test_concurrent_appends_lose_nothing(path: Path) -> None:
    """Twenty at once, each in its turn: all entries are there in the end."""
    threads = [threading.Thread(target=append_entry, args=(path, build(f"actor-{number}"))) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_ids(path)) == sorted(["first", *(f"actor-{number}" for number in range(20))])


def test_another_writer_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the lock is held elsewhere for longer than the wait, nothing is written."""
    monkeypatch.setattr("cgw.actors.append.LOCK_SECONDS", 0.05)
    with hold_folder_lock(path.parent), pytest.raises(ConfigError, match="another process is writing it: try again"):
        append_entry(path, build("second"))
    assert read_ids(path) == ["first"]
