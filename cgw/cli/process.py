"""The process that all commands run in: its settings, standard output, and exit statuses."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgw.service.settings import Settings

EPILOG = """\
Exit status: 0 for success, 1 for a problem with a setting, a file or a server (the reason is on standard error),
2 for a wrong command line, 130 when interrupted by Ctrl-C.
"""


def load_process_settings() -> Settings:
    """Return the settings from the process's environment variables.

    Raises :exc:`~cgw.errors.ConfigError` with every problem.
    """
    from cgw.service.settings import load_settings

    return load_settings(os.environ)


def exit_on_closed_pipe() -> None:
    """Let SIGPIPE end the process, as in any Unix filter: for ``cgw usage | head``.

    Not for ``cgw serve``: SIGPIPE would end it whenever a client disconnects.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def discard_output() -> None:
    """Send output that is not flushed yet to ``/dev/null``."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def terminal_width() -> int:
    """Return the width of the terminal in columns."""
    return shutil.get_terminal_size().columns
