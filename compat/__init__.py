"""Real clients against cgw: ``make compat``. Not part of the tests, as it installs packages from their registries."""
