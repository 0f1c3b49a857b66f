"""Exports runs to other programs: data frames, files, experiment trackers."""
