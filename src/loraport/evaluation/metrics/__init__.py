"""METRICS: what a metric is, and those that need nothing but the clips; clips in, numbers out, no paths."""
