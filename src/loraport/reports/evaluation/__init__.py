"""EVALUATION, as people read it: sentences, tables, the page."""
