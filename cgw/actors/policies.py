"""The sources of actors that exist, by name, and the policy of each.

The names are the reference's: they are part of keys in Redis and of usage events, so they must not change.
"""

from __future__ import annotations

from collections.abc import Mapping

from cgw.model import SourcePolicy

STATIC = "static"
ANONYMOUS = "anonymous"
DOTCOM_USER = "dotcom-user"
PRODUCT_SUBSCRIPTION = "dotcom-product-subscriptions"

SUBSCRIPTION_ENDPOINT_ACCESS: Mapping[str, bool] = {"/v1/attribution": True}
"""Attribution works although a subscription's access is off, for customers who bring their own key (§7)."""

POLICIES: Mapping[str, SourcePolicy] = {
    # Actors of the operator's own, so the operator wants the alerts.
    STATIC: SourcePolicy(has_usage_alerts=True),
    ANONYMOUS: SourcePolicy(),
    # Sourcegraph.com's abuse handling sets a limit of 1 to cut an actor off (the reference's §5).
    DOTCOM_USER: SourcePolicy(is_cut_off_at_one=True),
    # Customers, with a page of their own (the reference's §10).
    PRODUCT_SUBSCRIPTION: SourcePolicy(
        is_cut_off_at_one=True,
        has_usage_alerts=True,
        admin_path="/site-admin/dotcom/product/subscriptions/{id}",
    ),
}
"""All sources, in the order in which ``cgw limits`` looks for an id."""
