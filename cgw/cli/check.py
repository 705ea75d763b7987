"""``cgw check``: all problems of a configuration at once."""

from __future__ import annotations

from pathlib import Path

import click

from cgw.cli.process import EPILOG, env_file_option, examine_process_settings, exit_on_closed_pipe


@click.command(epilog=EPILOG)
@env_file_option
@click.option(
    "--running", "is_running", is_flag=True, help="cgw runs with these settings: its ports and data directory are used."
)
def check(env_file: Path | None, is_running: bool) -> int:
    """Check the settings and everything that they name, without serving.

    These are the actors file, TLS files, the data directory and its space, ports, Redis, and the hosts of providers:
    all side by side, for 10 seconds at most. No request is sent to a provider. Each problem is a line on standard
    output, `variable: what is wrong: what to do`; warnings are on standard error, and do not change the exit status.
    """
    exit_on_closed_pipe()
    reading = examine_process_settings(env_file)
    from cgw.service.check import examine
    from cgw.service.findings import list_problems, list_warnings

    findings = examine(reading.settings, wrong=reading.problems, is_running=is_running)
    problems = [*reading.problems.values(), *list_problems(findings)]
    warnings = [*reading.settings.warnings, *list_warnings(findings)]
    for warning in warnings:
        click.echo(f"cgw: warning: {warning}", err=True)
    for problem in problems:
        click.echo(problem)
    click.echo(f"cgw: {_count(problems, 'problem')}, {_count(warnings, 'warning')}", err=True)
    return 1 if problems else 0


def _count(lines: list[str], noun: str) -> str:
    return f"{len(lines)} {noun}{'' if len(lines) == 1 else 's'}"
