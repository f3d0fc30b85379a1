"""Adapters fitted to samples: a factor for each group of layers, then low-rank corrections."""
