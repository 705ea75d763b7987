"""Run the command ``cgw`` as ``python -m cgw``."""

from __future__ import annotations

from cgw.cli.main import main

if __name__ == "__main__":
    main()
