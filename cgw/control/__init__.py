"""The ASGI app that Hypercorn serves beside the hot engine, and the adapter that runs exchanges under it."""
