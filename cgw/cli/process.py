"""What the commands share: the settings, the epilogue of their help, and how they treat their output."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgw.service.settings import Settings

EPILOG = """\
Exit status: 0 when all went well, 1 when a setting, a file or a server is not as it should be (the reason is on
standard error), 2 for a wrong command line, 130 when interrupted by Ctrl-C.
"""


def load_settings_of_process() -> Settings:
    """Return the settings that the process's environment describes.

    Raises :exc:`~cgw.errors.ConfigError` with every problem.
    """
    from cgw.service.settings import load_settings

    return load_settings(os.environ)


def end_quietly_on_closed_pipe() -> None:
    """Let ``cgw usage | head`` end as any Unix filter does. Not for ``serve``, whose sockets break all the time."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def discard_output() -> None:
    """Drop output that is not written yet: flushing it at exit would wait for the reader that did not read."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def terminal_width() -> int:
    """Return the width of the terminal in columns."""
    return shutil.get_terminal_size().columns
