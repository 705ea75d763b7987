"""The tables that ``make compat`` writes, and the rule by which it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from compat import table
from compat.__main__ import COLUMNS
from compat.install import LOCKS, SCRIPTS, find_version
from compat.lock import list_locks
from compat.registry import CLIENTS
from compat.table import (
    ABSENT,
    BEGIN,
    END,
    PASSED,
    Cell,
    Result,
    build_tables,
    list_regressions,
    load_results,
    merge_results,
    replace_tables,
    save_results,
)


def result(**cells: Cell | str) -> Result:
    named = {name: cell if isinstance(cell, Cell) else Cell(cell) for name, cell in cells.items()}
    return Result("1.2.3", "2026-01-02", named)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (PASSED, PASSED, False),
        (PASSED, "it got nothing", True),
        (PASSED, ABSENT, True),
        (PASSED, "cannot be had: npm is not installed", True),
        ("it got nothing", "it got less", False),
        ("it got nothing", PASSED, False),
        (ABSENT, "it got nothing", False),
    ],
)
def test_only_a_cell_that_was_passed_can_be_lost(before: str, after: str, lost: bool) -> None:
    """A cell counts as a regression exactly where it was "ok" before and is anything else now."""
    found = list_regressions({"a": result(plain=before)}, {"a": result(plain=after)}, ["plain"])
    assert found == ([f"a, plain: {after}"] if lost else [])


def test_what_did_not_run_is_no_regression() -> None:
    """Clients and scenarios that a run leaves out are not compared; a cell that is gone from a client that ran is."""
    before = {"a": result(plain=PASSED, stream=PASSED), "b": result(plain=PASSED)}
    new = {"a": result(plain=PASSED)}
    assert list_regressions(before, new, ["plain"]) == []
    assert list_regressions(before, new, ["plain", "stream"]) == ["a, stream: was not run"]


def test_results_of_clients_that_did_not_run_stay() -> None:
    """New results replace earlier ones; others stay, in the registry's order, as long as it has the client."""
    before = {"c": result(plain=PASSED), "a": result(plain="no"), "gone": result(plain=PASSED)}
    new = {"a": result(plain=PASSED)}
    merged = merge_results(before, new, ["a", "b", "c"])
    assert list(merged) == ["a", "c"]
    assert merged["a"].cells["plain"].result == PASSED


def test_cells_that_did_not_run_stay_while_the_version_is_the_same() -> None:
    """A run of some scenarios leaves the other cells of a client, unless they are of another version of it."""
    before = {"a": result(plain=PASSED, stream=PASSED)}
    merged = merge_results(before, {"a": result(stream="it got nothing")}, ["a"])
    assert {name: cell.result for name, cell in merged["a"].cells.items()} == {
        "plain": PASSED,
        "stream": "it got nothing",
    }
    newer = evolve(result(stream=PASSED), version="2.0.0")
    assert merge_results(before, {"a": newer}, ["a"]) == {"a": newer}


def test_what_went_wrong_is_a_numbered_note() -> None:
    """A cell that failed points to a note with the words; a note on one that passed does not hide the "ok"."""
    cells = {"plain": Cell("it got nothing"), "stream": Cell(PASSED, note="as a whole"), "tools": Cell(ABSENT)}
    text = build_tables({"a": Result("1.2.3", "2026-01-02", cells, ("example.com",))}, list(cells))
    assert "| a | 1.2.3 | 2026-01-02 | **no** (1) | ok (2) | – |" in text
    assert "1. a, plain: it got nothing\n2. a, stream: as a whole" in text
    assert "a (example.com)" in text


def test_errors_of_clients_cannot_break_the_table() -> None:
    """An error is shown in one cell with the number of attempts, whatever is in it."""
    cell = Cell(PASSED, error="Error:\n| `rm` |" + "x" * 200, attempts=3)
    row = build_tables({"a": result(plain=cell)}, ["plain"]).splitlines()[-1]
    assert row.startswith("| a | 3 × `Error: / 'rm' /xxx")
    assert row.count("|") == 3
    assert row.count("`") == 2


def test_only_the_part_between_the_markers_is_written() -> None:
    """Writing the tables again leaves the rest of the page as it is; a page without markers is refused."""
    page = f"# Head\n{BEGIN}\nold\n{END}\ntail\n"
    written = replace_tables(page, "new")
    assert written == f"# Head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"
    assert replace_tables(written, "new") == written
    with pytest.raises(ValueError, match="needs the lines"):
        replace_tables("# Head\n", "new")


def test_results_are_read_as_they_were_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results survive the file, and none is there before the first run."""
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(f"{BEGIN}\n{END}\n", "utf-8")
    assert load_results(tmp_path / "results.json") == {}
    results = {"a": Result("1", "2026-01-02", {"plain": Cell(PASSED, "Error: ü", 2, "why")}, ("example.com",))}
    save_results(results, ["plain"])
    assert load_results(tmp_path / "results.json") == results
    assert "| a | 1 |" in (tmp_path / "page.md").read_text("utf-8")


def test_the_page_has_the_results() -> None:
    """``docs/clients.md`` matches ``results.json``, and has no row of a client that is not there any more."""
    results = load_results()
    page = table.PAGE.read_text("utf-8")
    assert page == replace_tables(page, build_tables(results, list(COLUMNS)))
    assert list(results) == [client.name for client in CLIENTS if client.name in results]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_each_client_has_its_script_and_its_lock(client: object) -> None:
    """The files that a line of the registry names are there, and its lock can be written again."""
    found = next(known for known in CLIENTS if known is client)
    assert (SCRIPTS / found.script).is_file()
    assert find_version(found)[0].isdigit()
    assert found.lock in list_locks()
    assert {name for name, _ in (*found.absent, *found.attempts, *found.statuses, *found.notes)} <= set(COLUMNS)


def test_names_of_clients_are_unique() -> None:
    """Results are kept by name."""
    names = [client.name for client in CLIENTS]
    assert len(set(names)) == len(names)


def test_locks_name_no_registry() -> None:
    """Locks pin packages, and leave where they are from to each machine."""
    for path in (*LOCKS.glob("*.txt"), *LOCKS.glob("*/package-lock.json")):
        text = path.read_text("utf-8")
        assert '"resolved"' not in text
        assert "--index-url" not in text
        assert "://" not in text or path.suffix == ".json", path.name  # npm's have addresses of authors' funds
