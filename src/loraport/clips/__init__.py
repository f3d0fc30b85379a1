"""CLIPS: moving and still pictures in memory and in files; lossless to measure, small to look at."""
