"""``cgw token``: making tokens of static actors."""

from __future__ import annotations

from pathlib import Path

import click

from cgw.cli.process import EPILOG, exit_on_closed_pipe


@click.group()
def token() -> None:
    """Make, check and derive tokens."""


@token.command(epilog=EPILOG)
@click.option("--id", "actor_id", required=True, help="The actor's id, which limits count on.")
@click.option("--name", default="", help="The actor's name, for people.")
@click.option(
    "--append",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append the entry to this actors file, in one step, if the file is valid then; print only the token.",
)
def new(actor_id: str, name: str, path: Path | None) -> None:
    """Make a token and its entry for CODY_GATEWAY_ACTORS_FILE. The token is not shown again.

    The entry goes to standard output, as for `cgw token new --id acme >> actors.toml`, and the token to standard
    error. With --append the token goes to standard output.
    """
    exit_on_closed_pipe()
    from cgw.actors.tokens import ACTOR_ID, ACTOR_ID_RULE, NAME_RULE, build_entry, hash_token, is_valid_name, new_token

    if not ACTOR_ID.fullmatch(actor_id):
        raise click.BadParameter(ACTOR_ID_RULE, param_hint="'--id'")
    if not is_valid_name(name):
        raise click.BadParameter(NAME_RULE, param_hint="'--name'")
    # Only its hash goes into the file: the token is shown here once and cannot be recovered.
    secret = new_token()
    entry = build_entry(actor_id, name, hash_token(secret))
    if path is not None:
        from cgw.actors.append import append_entry

        append_entry(path, entry)
        click.echo(f"The entry is in {path}; adjust its limits. The token; keep it secret:", err=True)
        click.echo(secret)
        return
    # The token first: should nobody be able to read it, the entry is of no use.
    click.echo(f"The token; keep it secret, it is not shown again:\n\n{secret}\n", err=True)
    click.echo("The entry for the file that CODY_GATEWAY_ACTORS_FILE names; adjust its limits:", err=True)
    # A blank line before it, since the file that it is appended to may end without a line break.
    click.echo(f"\n{entry}", nl=False)
