"""ORCHESTRATION: what to do, in what order, where. The one place in which the mathematics and the files meet."""
