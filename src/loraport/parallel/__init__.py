"""Several layers at once: threads that work, threads that read before them, and a card's streams."""
