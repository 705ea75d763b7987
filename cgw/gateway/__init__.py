"""Provider routes, and the exchange that runs on them."""
