"""``cgw serve`` and ``cgw demo``."""

from __future__ import annotations

from pathlib import Path

import click

from cgw.cli.process import EPILOG, env_file_option, examine_process_settings, terminal_width

FIRST_SETTINGS = (
    "CODY_GATEWAY_ACTORS_FILE",
    "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN",
    "CODY_GATEWAY_OPENAI_ACCESS_TOKEN",
    "PORT",
    "CODY_GATEWAY_HOST",
    "CODY_GATEWAY_DATA_DIR",
    "REDIS_ENDPOINT",
    "CODY_GATEWAY_TLS_CERT_FILE",
    "CODY_GATEWAY_TLS_KEY_FILE",
    "CODY_GATEWAY_LOG_FORMAT",
)
"""The settings that one needs first, as ``cgw serve --help`` names them."""


class _CommandWithSettings(click.Command):
    """A command whose help has a list of settings."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and then the settings that one needs first."""
        super().format_options(context, formatter)
        # Imported when help is asked for: it imports the settings of all packages.
        from cgw.config.describe import describe_settings
        from cgw.service.settings import Settings

        rows = {row.name: row for row in describe_settings(Settings())}
        with formatter.section("The settings to begin with (`cgw config` lists all)"):
            # Wide names in a column of their own would leave no room for words beside them.
            formatter.write_dl([(name, rows[name].help) for name in FIRST_SETTINGS], col_max=terminal_width() // 2)


@click.command(cls=_CommandWithSettings, epilog=EPILOG)
@env_file_option
def serve(env_file: Path | None) -> int:
    """Run the gateway until SIGTERM or SIGINT; open responses may finish within CODY_GATEWAY_DRAIN_TIMEOUT.

    Every setting is an environment variable. What keeps it from starting is reported all at once, as by `cgw check`;
    a provider that cannot be reached is a warning.
    """
    reading = examine_process_settings(env_file)
    if reading.problems:
        from cgw.errors import ConfigError
        from cgw.service.check import examine
        from cgw.service.findings import list_problems, list_warnings

        findings = examine(reading.settings, wrong=reading.problems)
        raise ConfigError(
            [*reading.problems.values(), *list_problems(findings)],
            [*reading.settings.warnings, *list_warnings(findings)],
        )
    from cgw.service.run import run_service

    return run_service(reading.settings)


@click.command(epilog=EPILOG)
@click.option("--once", is_flag=True, help="Exit after the tour instead of serving until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port to serve on (default: 9992, or any free one).")
def demo(once: bool, port: int | None) -> int:
    """Show a request streaming through the gateway; needs no key and no network."""
    from cgw.demo.tour import run_demo

    return run_demo(once=once, port=port)
