"""THE LAB: every method on every pair of the embedded family, with controls that could embarrass it."""
