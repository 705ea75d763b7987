"""``cgw token``: making tokens of static actors."""

from __future__ import annotations

import click

from cgw.cli.process import EPILOG, exit_on_closed_pipe


@click.group()
def token() -> None:
    """Make, check and derive tokens."""


@token.command(epilog=EPILOG)
@click.option("--id", "actor_id", required=True, help="The actor's id, which limits count on.")
@click.option("--name", default="", help="The actor's name, for people.")
def new(actor_id: str, name: str) -> None:
    """Print a new token, and the entry to paste into CODY_GATEWAY_ACTORS_FILE. The token is not shown again."""
    exit_on_closed_pipe()
    from cgw.actors.tokens import ACTOR_ID, ACTOR_ID_RULE, NAME_RULE, build_entry, hash_token, is_valid_name, new_token

    if not ACTOR_ID.fullmatch(actor_id):
        raise click.BadParameter(ACTOR_ID_RULE, param_hint="'--id'")
    if not is_valid_name(name):
        raise click.BadParameter(NAME_RULE, param_hint="'--name'")
    # Only its hash goes into the file: the token is shown here once and cannot be recovered.
    secret = new_token()
    click.echo(f"The token; keep it secret, it is not shown again:\n\n{secret}\n")
    click.echo("The entry for the file that CODY_GATEWAY_ACTORS_FILE names; adjust its limits:\n")
    click.echo(build_entry(actor_id, name, hash_token(secret)), nl=False)
