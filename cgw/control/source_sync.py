"""``/-/actor/sync-all-sources``: syncing the sources of actors now, for operators (the reference's §6.2)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cgw.actors.sync import SourceSync, SyncFailed, SyncWorker
from cgw.control.responses import JSON, ControlResponse
from cgw.durations import format_go_duration
from cgw.errors import Refusal


async def sync_all_sources(worker: SyncWorker | None) -> ControlResponse:
    """Sync all sources on this replica, and return how it went, a JSON object per source and line.

    The status is 200, or 500 if a source failed. ``worker`` is ``None`` where there is no source to sync. Raises
    :exc:`~cgw.errors.Refusal` (503) when no sync could begin or end.
    """
    if worker is None:
        return ControlResponse(200, JSON, b"")
    try:
        syncs = await worker.sync_now()
    except SyncFailed as error:
        raise Refusal(503, str(error), code="not_synced", headers=[(b"retry-after", b"5")]) from None
    return _build_response(syncs)


def _build_response(syncs: Sequence[SourceSync]) -> ControlResponse:
    # In the reference, the body is the lines that were logged, as JSON; the keys are those.
    lines = []
    for sync in syncs:
        line: dict[str, object] = {
            "level": "error" if sync.result is None else "info",
            "source": sync.source,
            "sync_duration": format_go_duration(round(sync.seconds * 1000)),
        }
        if sync.result is None:
            line["error"] = sync.problem
        else:
            line |= {"seen": sync.result.seen, "removed": sync.result.removed}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    status = 200 if all(sync.result is not None for sync in syncs) else 500
    return ControlResponse(status, JSON, "".join(lines).encode())
