"""Shared by the Python scripts: run the action that is asked for, and print one line of JSON about it."""

import json
import os
import sys

URL, KEY, MODEL = (os.environ[name] for name in ("CGW_URL", "CGW_KEY", "CGW_MODEL"))
PROMPT = "Good day"

calls = []
"""The calls of tools so far, each a name and arguments."""


def note_call(name, arguments):
    """Note a call that the client was given."""
    calls.append([name, json.loads(arguments) if isinstance(arguments, str) else dict(arguments)])


def add(first: int, second: int) -> int:
    """Add two numbers."""
    note_call("add", {"first": first, "second": second})
    return first + second


SCHEMA = {
    "type": "object",
    "properties": {"first": {"type": "integer"}, "second": {"type": "integer"}},
    "required": ["first", "second"],
}
"""The arguments of :func:`add`."""


def find_status(error):
    """Return the HTTP status that an exception tells, in any of the ways that libraries have."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for holder in (error, getattr(error, "response", None)):
            for name in ("status_code", "code", "status"):
                value = getattr(holder, name, None)
                if isinstance(value, int) and 400 <= value <= 599:
                    return value
        error = error.__cause__ or error.__context__
    return None


def run(plain, stream, tools):
    """``plain`` and ``tools`` return the answer's text, ``stream`` yields its pieces."""
    action = sys.argv[-1]
    try:
        if action == "stream":
            pieces = [piece for piece in stream() if piece]
            said = {"text": "".join(pieces), "pieces": len(pieces)}
        elif action == "abort":
            answer = stream()
            said = {"text": next(piece for piece in answer if piece)}
            answer.close()
        else:
            said = {"text": {"plain": plain, "tools": tools}[action](), "calls": calls}
    except Exception as error:
        said = {"error": str(error), "type": type(error).__name__, "status": find_status(error)}
    print(json.dumps(said), flush=True)
