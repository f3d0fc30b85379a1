"""Bounded, seeded attacks on every reader and the command line: `make fuzz`."""
