"""Models on a disk or on the Hub: which files they are, read lazily, written again."""
