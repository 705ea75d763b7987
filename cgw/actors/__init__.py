"""Who is asking: sources that turn a token into an :class:`~cgw.model.Actor`."""
