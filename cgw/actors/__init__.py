"""Actors: the sources that turn a token into an :class:`~cgw.model.Actor`."""
