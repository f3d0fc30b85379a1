"""NETWORKS of metrics: each a module that turns frames [frames, height, width, 3] of bytes into numbers."""
