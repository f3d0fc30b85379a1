"""MATH: tensors in, tensors out. Silent; no paths, no configuration, no logging."""
