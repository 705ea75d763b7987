"""The documents that cgw sends to Sourcegraph.com's GraphQL API (the reference's §3)."""

from __future__ import annotations

_RATE_LIMIT = "{ allowedModels source limit intervalSeconds }"
_ACCESS = (
    f"codyGatewayAccess {{ enabled chatCompletionsRateLimit {_RATE_LIMIT} "
    f"codeCompletionsRateLimit {_RATE_LIMIT} embeddingsRateLimit {_RATE_LIMIT} }}"
)
_SUBSCRIPTION = f"id uuid account {{ username }} isArchived {_ACCESS} activeLicense {{ info {{ tags }} }}"
_CONNECTION = (
    f"{{ totalCount pageInfo {{ endCursor hasNextPage }} nodes {{ {_SUBSCRIPTION} sourcegraphAccessTokens }} }}"
)

CHECK_DOTCOM_USER_ACCESS_TOKEN = (
    "query CheckDotcomUserAccessToken($token: String!) { dotcom { codyGatewayDotcomUserByToken(token: $token) "
    f"{{ id username {_ACCESS} }} }} }}"
)

CHECK_ACCESS_TOKEN = (
    "query CheckAccessToken($token: String!) { dotcom { productSubscriptionByAccessToken(accessToken: $token) "
    f"{{ {_SUBSCRIPTION} }} }} }}"
)

# Without arguments, as the reference asks: the API then returns all of them, and may not know `after`.
LIST_PRODUCT_SUBSCRIPTIONS = f"query ListProductSubscriptions {{ dotcom {{ productSubscriptions {_CONNECTION} }} }}"

LIST_MORE_PRODUCT_SUBSCRIPTIONS = (
    "query ListProductSubscriptions($after: String!) { dotcom { productSubscriptions(after: $after) "
    f"{_CONNECTION} }} }}"
)

SNIPPET_ATTRIBUTION = (
    "query SnippetAttribution($snippet: String!, $first: Int!) { snippetAttribution(snippet: $snippet, first: $first) "
    "{ totalCount limitHit nodes { repositoryName } } }"
)
