"""Evaluates records: metrics, groups of seeds, statistics, claims and verdicts. Pure functions that read no files."""
