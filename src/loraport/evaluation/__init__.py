"""EVALUATION: numbers for clips that are there: metrics, differences in pairs, controls, tables."""
