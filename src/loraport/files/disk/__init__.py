"""Files and folders on a disk: whole or absent, whose they are, whether they are still the same."""
