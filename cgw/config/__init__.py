"""Declaring, reading, checking and printing settings. The settings themselves stand beside what they configure."""
