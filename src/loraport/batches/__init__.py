"""Many transfers at once: what was asked for becomes jobs, jobs become runs, and every run has a row in the results."""
