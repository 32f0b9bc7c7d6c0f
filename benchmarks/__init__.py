"""Measurements: each module prints a table of ratios and writes benchmarks/results/NAME.json."""
