"""Candidates judged by samples: scores, the guard, and what the commands do with them."""
