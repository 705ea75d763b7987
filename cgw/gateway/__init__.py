"""Routes, and the exchange that runs on them."""
