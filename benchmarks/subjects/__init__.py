"""The subjects of measurements: a class per gateway finds it, writes its configuration and starts it."""
