"""TABLES of layer names: one file a family of models, in the form that `family` declares."""
