"""Fireworks: settings, models, the dialect of both of its completion APIs."""
