"""Whole gateways with the scripted Sourcegraph.com and Enterprise Portal: the table of the reference's §4."""

from __future__ import annotations

from pathlib import Path

from cgw.testing.script import Script
from cgw.testing.scripted_portal import CLIENT_ID, CLIENT_SECRET, ScriptedAccess, open_scripted_portal
from cgw.testing.scripted_sourcegraph import SERVICE_TOKEN, ScriptedUser, open_scripted_sourcegraph
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.gateway import open_gateway
from tests.support.raw_client import open_client
from tests.support.sources import subscription_token, user_token

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}]}'


def ask(token: str, path: str = "/v1/completions/openai") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {len(BODY)}\r\n"
        "x-sourcegraph-feature: chat_completions\r\n\r\n"
    )
    return head.encode() + BODY


async def test_users_and_subscriptions_are_served(tmp_path: Path) -> None:
    """One gateway serves a user of Sourcegraph.com and a subscription of the Enterprise Portal."""
    async with (
        open_scripted_sourcegraph() as sourcegraph,
        open_scripted_portal() as portal,
        open_scripted_upstream({"*": Script(api_key="scripted", tokens_per_second=0)}) as upstream,
    ):
        sourcegraph.users[user_token(1)] = ScriptedUser(1)
        portal.accesses.append(ScriptedAccess("5b4e-1", (subscription_token(1),)))
        environ = {
            "CODY_GATEWAY_DOTCOM_API_URL": sourcegraph.url,
            "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": SERVICE_TOKEN,
            "CODY_GATEWAY_ENTERPRISE_PORTAL_URL": portal.url,
            "SAMS_URL": portal.url,
            "SAMS_CLIENT_ID": CLIENT_ID,
            "SAMS_CLIENT_SECRET": CLIENT_SECRET,
            "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "scripted",
        }
        async with open_gateway(tmp_path, upstream.url, more=environ) as gateway, open_client(gateway.port) as client:
            for token in (user_token(1), subscription_token(1), user_token(1)):
                answer = await client.ask(ask(token))
                assert answer.status == 200, answer.body
            assert (await client.ask(ask(user_token(2)))).status == 401
        assert sourcegraph.counts["CheckDotcomUserAccessToken"] == 2
        assert portal.counts == {"token": 1, "GetCodyGatewayAccess": 1}
