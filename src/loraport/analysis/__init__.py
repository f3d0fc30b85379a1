"""The paper's analysis over all layers, its sweeps and its probe models."""
