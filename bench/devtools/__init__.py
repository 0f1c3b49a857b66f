"""Programs that measure the suite itself. They are for its developers and for CI, not for users of `bench`.

`gate` compares the times of this tree with those of another commit, `counters` is the exact gate, `power` measures how
often both gates detect a planted change, `peers` compares the suite with other programs, and `scale` measures the cost
of the suite with many cells. `sizes` counts the parameters of all networks that lists name.
"""

import sys

from bench.program import guard

if sys.argv[:1] == ["-m"]:  # so it is while `python -m bench.devtools.NAME` looks for the program
    guard()
