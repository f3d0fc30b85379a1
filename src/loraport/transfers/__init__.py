"""THE FEATURE: layer by layer, the new update and what happened to it, into a file."""
