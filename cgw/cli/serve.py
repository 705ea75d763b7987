"""``cgw serve`` and ``cgw demo``."""

from __future__ import annotations

import click

from cgw.cli.process import EPILOG, load_process_settings


@click.command(epilog=EPILOG)
def serve() -> int:
    """Run the gateway until SIGTERM or SIGINT; open responses may finish within CODY_GATEWAY_DRAIN_TIMEOUT."""
    settings = load_process_settings()
    from cgw.service.run import run_service

    return run_service(settings)


@click.command(epilog=EPILOG)
@click.option("--once", is_flag=True, help="Exit after the tour instead of serving until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port to serve on (default: 9992, or any free one).")
def demo(once: bool, port: int | None) -> int:
    """Show a request streaming through the gateway; needs no key and no network."""
    from cgw.demo.tour import run_demo

    return run_demo(once=once, port=port)
