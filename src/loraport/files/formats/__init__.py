"""One module per file format: headers first, one tensor on demand, the same bytes for the same content."""
