"""The gateway whose bytecodes are counted: ``python counting_server.py FILE``, with any checkout's cgw on the path.

Counting begins at the signal SIGRTMIN and ends at SIGRTMIN+1, which also writes the counts to ``FILE``: JSON, for each
code object its file, name, first line, bytecodes, and frames (calls and resumptions). It imports nothing of the suite,
so that an earlier cgw can be measured with it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import Any


def install_counter(path: Path) -> None:
    """Have the two signals begin and end counting, of all threads."""
    monitoring: Any = getattr(sys, "monitoring")  # noqa: B009 - the types are those of Python 3.11
    tool, events = monitoring.PROFILER_ID, monitoring.events
    bytecodes: Counter[CodeType] = Counter()
    frames: Counter[CodeType] = Counter()

    def count_bytecode(code: CodeType, offset: int) -> None:
        bytecodes[code] += 1

    def count_frame(code: CodeType, offset: int) -> None:
        frames[code] += 1

    def begin(*_: object) -> None:
        monitoring.set_events(tool, events.INSTRUCTION | events.PY_START | events.PY_RESUME)

    def end(*_: object) -> None:
        monitoring.set_events(tool, 0)
        rows = [
            (code.co_filename, code.co_qualname, code.co_firstlineno, count, frames[code])
            for code, count in bytecodes.items()
        ]
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rows))
        part.rename(path)  # whoever waits for it never sees a half of it

    monitoring.use_tool_id(tool, "cgw-bytecodes")
    monitoring.register_callback(tool, events.INSTRUCTION, count_bytecode)
    monitoring.register_callback(tool, events.PY_START, count_frame)
    monitoring.register_callback(tool, events.PY_RESUME, count_frame)
    signal.signal(signal.SIGRTMIN, begin)
    signal.signal(signal.SIGRTMIN + 1, end)


if __name__ == "__main__":
    install_counter(Path(sys.argv[1]))
    sys.argv = ["cgw", "serve"]
    sys.path.insert(0, os.getcwd())
    runpy.run_module("cgw", run_name="__main__")
