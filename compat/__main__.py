"""Install real clients, run them against cgw, and write the tables: ``python -m compat [NAME …]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import trio

from compat.bench import Bench, open_bench
from compat.install import NotInstalled, find_version, install
from compat.registry import CLIENTS, Client
from compat.scenarios import SCENARIOS, Failed, Scenario, name_actor, run_scenario
from compat.table import ABSENT, PASSED, Cell, Result, list_regressions, load_results, merge_results, save_results
from compat.tasks import TASK, run_task

COLUMNS = (*(scenario.name for scenario in SCENARIOS), TASK)
ACTORS = [*(name_actor(scenario) for scenario in SCENARIOS if scenario.event == "CompletionsFinished"), TASK]


async def run_client(client: Client, folder: Path, columns: list[str]) -> Result:
    """Run one client through the scenarios, in front of a gateway of its own.

    Whatever goes wrong costs its own cell, or, where the client cannot be had, its own row.
    """
    cells: dict[str, Cell] = {}
    outside: tuple[str, ...] = ()
    try:
        # Not abandoned when the run is interrupted: an installation would be left half done.
        command = await trio.to_thread.run_sync(install, client, folder)
        with tempfile.TemporaryDirectory() as data:
            async with open_bench(Path(data), ACTORS) as bench:
                for name in columns:
                    cells[name] = await run_cell(bench, client, command, name)
                    shown = cells[name]
                    print(f"{client.name:24} {name:14} {shown.result}  {shown.error[:150]}", flush=True)
                outside = tuple(sorted(bench.outside.hosts))
    except NotInstalled as error:
        cells = {name: Cell(f"cannot be had: {error}") for name in columns}
    except Exception as error:  # of any kind, also in groups: the other clients' rows do not depend on this one's
        cells |= {name: Cell(f"could not be run: {error!r}"[:300]) for name in columns if name not in cells}
    return Result(find_version(client), datetime.now(UTC).date().isoformat(), cells, outside)


async def run_cell(bench: Bench, client: Client, command: list[str], column: str) -> Cell:
    """Run one scenario, or the task."""
    absent = dict(client.absent)
    if column in absent or (column == TASK and client.task is None):
        return Cell(ABSENT, note=absent.get(column, ""))
    try:
        if column == TASK:
            return Cell(PASSED, note=await run_task(bench, client, command))
        passed = await run_scenario(bench, client, command, _find_scenario(column))
    except Failed as error:
        return Cell(str(error))
    return Cell(PASSED, passed.error, passed.attempts, dict(client.notes).get(column, ""))


def _find_scenario(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


async def run_all(clients: list[Client], folder: Path, columns: list[str], jobs: int) -> int:
    """Run ``clients``, ``jobs`` at a time; return the exit status."""
    before = load_results()
    new: dict[str, Result] = {}
    limiter = trio.CapacityLimiter(jobs)
    # Clients with one lock share an installation, which must not be made twice at once.
    locks = {client.lock: trio.Lock() for client in clients}

    async def run_one(client: Client) -> None:
        async with locks[client.lock], limiter:
            result = new[client.name] = await run_client(client, folder, columns)
            # At once, and with what stands there now: the rows stay if the run is interrupted.
            names = [known.name for known in CLIENTS]
            save_results(merge_results(load_results(), {client.name: result}, names), COLUMNS)

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(run_one, client)
    regressions = list_regressions(before, new, columns)
    for regression in regressions:
        print(f"no longer ok: {regression}", file=sys.stderr)
    return 1 if regressions else 0


def main() -> int:
    """Parse the arguments, and run."""
    parser = argparse.ArgumentParser(prog="python -m compat", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of clients' names; without any, all are run")
    parser.add_argument("--folder", type=Path, default=Path(".compat"), help="where clients are installed")
    parser.add_argument("--jobs", type=int, default=2, help="how many clients run at a time")
    parser.add_argument("--only", choices=COLUMNS, action="append", help="run this scenario, and write its cells only")
    arguments = parser.parse_args()
    names = [name.lower() for name in arguments.names]
    clients = [client for client in CLIENTS if not names or any(name in client.name.lower() for name in names)]
    if not clients:
        parser.error(f"no client's name contains any of {', '.join(names)}")
    columns = arguments.only or list(COLUMNS)
    return trio.run(run_all, clients, arguments.folder.resolve(), columns, max(1, arguments.jobs))


if __name__ == "__main__":
    sys.exit(main())
