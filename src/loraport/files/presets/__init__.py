"""PRESETS: published models and accelerators under short names, a module of rows for each family or two."""
