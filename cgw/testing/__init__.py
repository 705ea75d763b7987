"""The scripted upstream, which the tour and the tests share."""
