"""The pages of the demo and of the lab."""
