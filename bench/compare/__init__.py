"""Compares two sides: runs of this suite, levels of one of their axes, or pytest-benchmark files.

`sides` reads the sides, `rules` defines how large a change must be to count, `changes` decides what changed, `render`
puts it into words, and `gate` turns it into an exit status.
"""
