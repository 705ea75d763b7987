"""The ASGI app that Hypercorn serves beside the HTTP/1.1 engine, and the adapter that runs exchanges under it."""
