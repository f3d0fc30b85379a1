"""RECIPES on one layer, one file each, with its settings and its paper."""
