"""The Enterprise Portal, which knows product subscriptions, and SAMS, which gives the tokens to ask it."""
