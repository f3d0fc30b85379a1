"""The embedded family of tiny video models, the benchmark on it, and the demo: loraport's laboratory."""
