"""The process that all commands run in: its settings, standard output, and exit statuses."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cgw.config.environment import ExaminedSettings
    from cgw.service.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = """\
Exit status: 0 for success, 1 for a problem with a setting, a file or a server (the reason is on standard error),
2 for a wrong command line, 130 when interrupted by Ctrl-C.
"""


def env_file_option(command: F) -> F:
    """Add the option ``--env-file`` to a command, as its argument ``env_file``."""
    return click.option(
        "--env-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Read settings from this file of NAME=value lines, too; the environment's own variables come first.",
    )(command)


def data_dir_option(command: F) -> F:
    """Add the option ``--data-dir`` to a command, as its argument ``data_dir``."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        metavar="DIRECTORY",
        help="The data directory, instead of CODY_GATEWAY_DATA_DIR.",
    )(command)


def examine_process_settings(env_file: Path | None = None) -> ExaminedSettings[Settings]:
    """Return the settings from the process's environment and ``env_file``, and the problems of wrong variables.

    Raises :exc:`~cgw.errors.ConfigError` for a file that cannot be used.
    """
    # Here and not above: it imports the settings of all packages.
    from cgw.service.settings import examine_settings

    return examine_settings(_read_environ(env_file))


def load_process_settings(env_file: Path | None = None) -> Settings:
    """Return the settings from the process's environment variables and ``env_file``.

    Raises :exc:`~cgw.errors.ConfigError` with every problem, and with the warnings.
    """
    from cgw.service.settings import load_settings

    return load_settings(_read_environ(env_file))


def _read_environ(env_file: Path | None) -> Mapping[str, str]:
    environ = os.environ
    if env_file is None:
        return environ
    from cgw.config.env_file import read_env_file

    # The process's own come last, so they win: a single setting can be changed for one start.
    return {**read_env_file(env_file), **environ}


def find_events_folder(data_dir: Path | None) -> Path:
    """Return the folder of usage events in ``data_dir``, or in the data directory of the settings.

    Raises :exc:`~cgw.errors.EventLogError` when that is no data directory of cgw.
    """
    from cgw.errors import EventLogError

    directory = data_dir or load_process_settings().data.directory
    folder = directory / "events"
    # An earlier version has a file instead, which the next start imports.
    if not os.path.isdir(folder) and not os.path.isfile(directory / "events.sqlite"):
        raise EventLogError(
            f"{directory} is not a data directory of cgw, it has no folder `events`: name the one that "
            "`cgw serve` uses with --data-dir or CODY_GATEWAY_DATA_DIR"
        )
    return folder


def exit_on_closed_pipe() -> None:
    """Let SIGPIPE end the process, as in any Unix filter: for ``cgw usage | head``.

    Not for ``cgw serve``: SIGPIPE would end it whenever a client disconnects.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def discard_output() -> None:
    """Send output that is not flushed yet to ``/dev/null``."""
    null = os.open(os.devnull, os.O_WRONLY)
    # Descriptor 1 itself, because the interpreter writes its buffer there at exit.
    os.dup2(null, 1)
    os.close(null)


def terminal_width() -> int:
    """Return the width of the terminal in columns."""
    return shutil.get_terminal_size().columns
