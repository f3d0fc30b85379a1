"""Presentation: results as pages and pictures."""
