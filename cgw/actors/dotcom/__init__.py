"""Sourcegraph.com's GraphQL API: its users, product subscriptions, and attribution."""
