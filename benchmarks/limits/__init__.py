"""The scenario ``limits``: what admitting and settling costs, beside the same scripts through redis-py."""
