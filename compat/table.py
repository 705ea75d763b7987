"""The results: kept as JSON beside this file, and shown in ``docs/clients.md`` between two markers.

Pure, but for loading and saving.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from attrs import asdict, evolve, frozen

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[1] / "docs" / "clients.md"
BEGIN, END = "<!-- written by make compat: begin -->", "<!-- written by make compat: end -->"
PASSED = "ok"
ABSENT = "–"


@frozen
class Cell:
    """The result of a client in one scenario.

    ``result`` is ``ok``, ``–`` for a scenario that it has not, or what went wrong. ``error`` is what the client showed
    of an error that was due, after ``attempts`` requests. ``note`` is the reason of a ``–``.
    """

    result: str
    error: str = ""
    attempts: int = 0
    note: str = ""


@frozen
class Result:
    """The results of one client, by scenario. ``outside`` are hosts that it asked for besides the gateway."""

    version: str
    date: str
    cells: Mapping[str, Cell]
    outside: tuple[str, ...] = ()


def load_results(path: Path = RESULTS) -> dict[str, Result]:
    """Return the results of the last runs, by client."""
    if not path.exists():
        return {}
    return {name: _load(fields) for name, fields in json.loads(path.read_text("utf-8")).items()}


def _load(fields: Mapping[str, object]) -> Result:
    values = dict(fields)
    cells = values.pop("cells")
    assert isinstance(cells, dict)
    values["outside"] = tuple(values["outside"])  # type: ignore[arg-type]
    return Result(cells={name: Cell(**cell) for name, cell in cells.items()}, **values)  # type: ignore[arg-type]


def save_results(results: Mapping[str, Result], scenarios: Iterable[str]) -> None:
    """Write the results, and the tables into the page."""
    value = {name: asdict(result) for name, result in results.items()}
    RESULTS.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(replace_tables(PAGE.read_text("utf-8"), build_tables(results, list(scenarios))), "utf-8")


def merge_results(before: Mapping[str, Result], new: Mapping[str, Result], clients: Iterable[str]) -> dict[str, Result]:
    """Return the results of ``clients``, in this order: new ones, and earlier ones where a client did not run.

    Cells of scenarios that did not run stay, unless they are of another version of the client.
    """
    merged = {**before, **{name: _merge(before.get(name), result) for name, result in new.items()}}
    return {name: merged[name] for name in clients if name in merged}


def _merge(before: Result | None, new: Result) -> Result:
    if before is None or before.version != new.version:
        return new
    if new.cells.keys() >= before.cells.keys():
        return new
    outside = tuple(sorted({*before.outside, *new.outside}))
    return evolve(new, cells={**before.cells, **new.cells}, outside=outside)


def list_regressions(before: Mapping[str, Result], new: Mapping[str, Result], scenarios: Collection[str]) -> list[str]:
    """Return a sentence for each cell of ``scenarios`` that was passed before, and was run again and did not pass.

    A cell that is gone from a client that ran counts, too; clients that did not run don't.
    """
    gone = Cell("was not run")
    return [
        f"{name}, {scenario}: {new[name].cells.get(scenario, gone).result}"
        for name, result in before.items()
        for scenario, cell in result.cells.items()
        if cell.result == PASSED
        and scenario in scenarios
        and name in new
        and new[name].cells.get(scenario, gone).result != PASSED
    ]


def build_tables(results: Mapping[str, Result], scenarios: list[str]) -> str:
    """Return the table of cells with its notes, and the one of what clients show of errors."""
    lines = [f"| client | version | run on | {' | '.join(scenarios)} |", "|---" * (len(scenarios) + 3) + "|"]
    notes: list[str] = []
    for name, result in results.items():
        cells = [_show_cell(name, result.cells.get(scenario, Cell(ABSENT)), scenario, notes) for scenario in scenarios]
        lines.append(f"| {name} | {result.version} | {result.date} | {' | '.join(cells)} |")
    if notes:
        lines += ["", *notes]
    outside = [f"{name} ({', '.join(result.outside)})" for name, result in results.items() if result.outside]
    if outside:
        lines += ["", f"Asked for another host, and was refused: {', '.join(outside)}."]
    faults = [name for name in scenarios if any(_has_error(result, name) for result in results.values())]
    lines += ["", "What their users are shown, and after how many requests:", ""]
    lines += [f"| client | {' | '.join(faults)} |", "|---" * (len(faults) + 1) + "|"]
    for name, result in results.items():
        shown = [_show_error(result.cells.get(fault, Cell(ABSENT))) for fault in faults]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _show_cell(name: str, cell: Cell, scenario: str, notes: list[str]) -> str:
    text = cell.note if cell.result in (PASSED, ABSENT) else cell.result
    if not text:
        return cell.result
    notes.append(f"{len(notes) + 1}. {name}, {scenario}: {text}")
    mark = cell.result if cell.result in (PASSED, ABSENT) else "**no**"
    return f"{mark} ({len(notes)})"


def _has_error(result: Result, scenario: str) -> bool:
    return bool(result.cells.get(scenario, Cell(ABSENT)).error)


def _show_error(cell: Cell, most: int = 90) -> str:
    if not cell.error:
        return ABSENT
    # One line, in which nothing is markup: the text is the client's.
    text = " ".join(cell.error.split()).replace("|", "/").replace("`", "'")
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"{cell.attempts} × `{text}`"


def replace_tables(page: str, tables: str) -> str:
    """Return ``page`` with ``tables`` between its markers. Raises :exc:`ValueError` where it has none."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} needs the lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}"
