"""Declaring, reading, checking and printing settings; the only package that knows of environment variables."""
