"""Runs for other programs: data frames, files, experiment trackers."""
