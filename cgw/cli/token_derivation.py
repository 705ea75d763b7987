"""``cgw token derive`` and ``cgw token hash``: tokens and hashes that are computed from a secret."""

from __future__ import annotations

import click

from cgw.cli.process import EPILOG, exit_on_closed_pipe
from cgw.cli.secret_input import read_secret, refuse_arguments

_SECRETS = {
    "access-token": "access token",
    "stored-hash": "stored hash",
    "licence-key": "licence key",
}


@click.command(epilog=EPILOG)
@click.option("--from", "kind", type=click.Choice(tuple(_SECRETS)), required=True, help="The kind of secret to read.")
@refuse_arguments
def derive(kind: str) -> None:
    """Print the token that a Sourcegraph secret gives for the gateway.

    The secret is read from standard input, or asked for on a terminal; it is not an argument, as those end in the
    shell's history. An access-token of Sourcegraph.com (sgp_…) gives its user's token (sgd_…), and so does the
    stored-hash of one (64 hex digits, from the database); a licence-key gives its product subscription's token (slk_…).
    """
    exit_on_closed_pipe()
    from cgw.actors import tokens

    derivations = {
        "access-token": tokens.derive_user_token,
        "stored-hash": tokens.derive_user_token_from_hash,
        "licence-key": tokens.derive_subscription_token,
    }
    secret = read_secret(_SECRETS[kind])
    try:
        click.echo(derivations[kind](secret))
    except ValueError as error:
        raise click.UsageError(f"the {_SECRETS[kind]} {error}") from None


@click.command(name="hash", epilog=EPILOG)
@refuse_arguments
def hash_() -> None:
    """Print the SHA-256 of a token, as `token_sha256` in CODY_GATEWAY_ACTORS_FILE has it.

    The token is read from standard input, or asked for on a terminal; it is not an argument, as those end in the
    shell's history.
    """
    exit_on_closed_pipe()
    from cgw.actors.tokens import hash_token

    click.echo(hash_token(read_secret("token")))
