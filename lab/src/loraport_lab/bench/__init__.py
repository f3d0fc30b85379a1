"""THE LAB: every method on every pair of the family, with controls."""
