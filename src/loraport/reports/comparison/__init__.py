"""The page of a comparison: clips side by side, in step, with a swipe, and with names hidden for votes."""
