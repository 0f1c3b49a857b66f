"""What records say: metrics, groups of seeds, statistics, claims and their verdicts. Pure functions, no files."""
