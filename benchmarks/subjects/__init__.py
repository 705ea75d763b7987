"""What is measured: one class for each gateway, which finds it, writes its configuration and starts it."""
