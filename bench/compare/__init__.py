"""Compares two sides: runs of this suite, levels of one of their axes, or pytest-benchmark files.

`sides` reads them, `changes` decides what changed, `rules` says how much counts, `render` puts it into words,
and `gate` makes an exit status of it.
"""
