"""One module a file format: headers first, one tensor on demand, written the same bytes for the same content."""
