"""Two sides beside each other: runs of this suite, levels of one of their axes, or pytest-benchmark files.

`sides` reads them, `judge` says what changed, `show` puts it into words, `gate` makes an exit status of it.
"""
