"""ORCHESTRATION: what to do, in what order, where."""
