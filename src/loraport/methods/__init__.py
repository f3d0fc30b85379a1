"""RECIPES for one layer, one file a method; `recipes` has the table of them, `settings` what can be set."""
