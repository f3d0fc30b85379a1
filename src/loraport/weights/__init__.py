"""I/O: files and names."""
