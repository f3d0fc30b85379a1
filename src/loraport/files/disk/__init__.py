"""Files and folders on a disk: written whole or not at all, owned by one process, checked for being unchanged."""
