"""Usage events: recorded in a SQLite spool before the answer's last byte is released."""
