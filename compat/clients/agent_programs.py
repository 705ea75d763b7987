"""Shared by the scripts for agents' programs: running one, and saying what its user saw."""

import json
import os
import re
import subprocess
import sys

ACTION, FOLDER = sys.argv[-1], sys.argv[1]
"""The action that is asked for, and the folder of npm's programs."""
URL, KEY, MODEL, HOME = (os.environ[name] for name in ("CGW_URL", "CGW_KEY", "CGW_MODEL", "HOME"))
WORK_FOLDER = os.environ.get("CGW_FOLDER", HOME)
PROMPT = "Good day"


class Run:
    """A program that writes a JSON event a line, and what was seen of it."""

    def __init__(self, command, environ=None):
        self.pieces, self.calls, self.text, self.error, self.status = [], [], None, None, None
        self.lines = []
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=WORK_FOLDER,
        )

    def read_events(self):
        """Yield the events as they come."""
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("{"):
                yield json.loads(line)

    def stop(self):
        """Interrupt the program, as Ctrl-C does."""
        self.process.terminate()

    def report(self):
        """Wait for the end and print what the user saw."""
        _, errors = self.process.communicate(timeout=120)
        if ACTION == "abort":
            said = {"text": "".join(self.pieces)}
        elif self.error is None and self.text is not None:
            said = {"text": self.text, "pieces": len(self.pieces), "calls": self.calls}
        else:
            words = self.error or errors.strip() or "".join(self.lines)[-300:] or "nothing was said"
            status = self.status or next(iter(re.findall(r"\b([45]\d\d)\b", words)), None)
            said = {"error": words, "status": None if status is None else int(status)}
        print(json.dumps(said), flush=True)
