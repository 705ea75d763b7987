"""Run the command ``cgw``: as ``python -m cgw``, and as the installed script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, and exit with its status. Never returns."""
    if sys.argv[1:2] == ["serve"]:
        # Before all other imports, which take some 300 ms: as PID 1 of a container, a process without handlers gets no
        # SIGTERM, and would be killed when its time to stop is over.
        from cgw.service.early_signals import handle_early_signals

        handle_early_signals()
    from cgw.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
