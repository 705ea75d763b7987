"""Counts of the bytecodes that an exchange runs."""
