"""The stacks of all Trio tasks and threads, as text, for SIGQUIT."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType

import trio
from attrs import define, field

Location = tuple[CodeType, int]


@define
class _Group:
    """Tasks that wait at the same place: with thousands of connections, one stack for all of them."""

    name: str
    parent: str
    locations: tuple[Location, ...]
    count: int = field(default=0)


def format_stacks() -> list[str]:
    """Return a text for each group of tasks that have the same stack, parents first, then one for each thread.

    Must be called in a Trio task. Does not block and runs no checkpoint, so the stacks are of one moment; it takes some
    milliseconds per 1,000 tasks.
    """
    return [*_format_tasks(), *_format_threads()]


def _format_tasks() -> Iterator[str]:
    root = trio.lowlevel.current_root_task()
    if root is None:
        return
    groups: dict[tuple[str, str, tuple[Location, ...]], _Group] = {}
    for task, parent in _walk(root):
        locations = tuple((frame.f_code, line) for frame, line in task.iter_await_frames())
        group = groups.setdefault((task.name, parent, locations), _Group(task.name, parent, locations))
        group.count += 1
    for group in groups.values():
        tasks = "task" if group.count == 1 else f"{group.count} tasks"
        within = f" in a nursery of {group.parent}" if group.parent else ""
        yield f"{tasks} {group.name}{within}\n{_format_locations(group.locations)}"


def _walk(root: trio.lowlevel.Task) -> Iterator[tuple[trio.lowlevel.Task, str]]:
    # A stack of our own instead of recursion: nurseries may be nested more deeply than Python's calls.
    waiting = [(root, "")]
    while waiting:
        task, parent = waiting.pop()
        yield task, parent
        children = [(child, task.name) for nursery in task.child_nurseries for child in nursery.child_tasks]
        waiting.extend(reversed(children))


def _format_threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # documented for debugging, in spite of its underscore
        yield f"thread {names.get(ident, ident)}\n{_format_locations(reversed(list(_list_callers(frame))))}"


def _list_callers(frame: FrameType | None) -> Iterator[Location]:
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _format_locations(locations: Iterable[Location]) -> str:
    lines = []
    for code, number in locations:
        lines.append(f"  {code.co_filename}:{number} {code.co_qualname}")
        source = linecache.getline(code.co_filename, number).strip()
        if source:
            lines.append(f"    {source}")
    return "\n".join(lines)
