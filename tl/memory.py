"""Peak memory of this process, read from the operating system's own high-water mark.

Nothing is polled: a poll costs time, and misses peaks.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """The high-water mark of resident memory since this object was made.

    On Linux the kernel's mark is reset at the start, so that what came before doesn't count. Elsewhere, or
    where the reset is refused, the mark covers the whole life of the process; `method` says which.
    """

    def __init__(self) -> None:
        try:
            _CLEAR.write_text("5")
            self.method = "VmHWM, reset at the start"
        except OSError:
            self.method = "ru_maxrss, whole process"
        self.baseline_bytes = self.peak_bytes()

    def peak_bytes(self) -> int:
        """The mark now, in bytes, with what the process had at the start."""
        if self.method.startswith("VmHWM"):
            for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
