"""FILES: everything that knows a byte or a key."""
