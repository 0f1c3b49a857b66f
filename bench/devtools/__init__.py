"""Programs that measure the suite itself, for its developers and CI; none of them is part of `bench` for users.

`gate` times this tree beside another commit, `counters` is the exact gate, `power` counts what both gates find, `peers`
times the suite beside other programs, and `scale` says what it costs with many cells.
"""
