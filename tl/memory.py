"""Measures the peak memory of this process, separately for training and validation passes.

Every figure is a high-water mark of the operating system or of torch's allocator, or was read at the end of a pass.
Nothing is polled, since polling costs time and misses peaks, and nothing waits for a device. The figures are those of
this process only. With execution `fast` that is all memory of a training: it loads its own images and starts no other
process. With `plain` the workers of its DataLoader are processes too, and have no mark that leaves out what they share
with this one. Their memory is not in the figures; a note of the result and `memory_method` say so.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any, Literal

import torch

from tl import devices, gpu

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_ROLLUP = Path("/proc/self/smaps_rollup")

Pass = Literal["train", "val"]


class MemoryMarks:
    """Peak memory of this process since this object was created, in total and by kind of pass.

    On Linux the kernel's high-water mark of resident memory is reset here and at the start of each pass. Elsewhere, or
    if the kernel refuses the reset, the mark covers the whole life of the process, and passes have none; `method` says
    which. Marks include memory from before the pass: the network, and freed memory that the C library keeps from
    earlier passes. `without` says which memory is held by other processes, for `method`; empty if none is.
    """

    def __init__(self, device: torch.device, *, without: str = "") -> None:
        self._device = device
        self._peaks: dict[tuple[str, Pass | None], int] = {}
        self._pass: Pass | None = None
        try:
            _CLEAR.write_text("5")
        except OSError:
            self._resets, self.method = False, "ru_maxrss, whole process"
        else:
            self._resets, self.method = True, "VmHWM, reset at the start"
        self.method += f", without {without}" if without else ""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.baseline: dict[str, int] = {"baseline_rss_bytes": self._resident(), **_shares()}
        """Fields of a `TrainResult`: memory of this process now."""

    def begin(self, kind: Pass) -> None:
        """Begin a pass, and end the one before it."""
        self.end()
        self._pass = kind

    def end(self) -> None:
        """End the pass, or the set-up before the first one. Takes a tenth of a millisecond."""
        for level, value in self._read().items():
            for kind in {None, self._pass}:
                self._peaks[level, kind] = max(value, self._peaks.get((level, kind), 0))
        self._pass = None
        if self._resets:
            _CLEAR.write_text("5")
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def figures(self) -> dict[str, Any]:
        """Return the memory fields of a `TrainResult`."""
        self.end()
        peak = self._peaks.get
        return {
            **self.baseline,
            "peak_rss_bytes": peak(("rss", None)),
            "train_rss_bytes": peak(("rss", "train")) if self._resets else None,
            "val_rss_bytes": peak(("rss", "val")) if self._resets else None,
            "memory_method": self.method,
            "cuda_allocated_bytes": peak(("cuda_allocated", None)),
            "cuda_reserved_bytes": peak(("cuda_reserved", None)),
            "cuda_train_allocated_bytes": peak(("cuda_allocated", "train")),
            "cuda_val_allocated_bytes": peak(("cuda_allocated", "val")),
            "gpu_process_bytes": self._on_gpu(),
            "mps_current_bytes": peak(("mps_current", None)),
            "mps_driver_bytes": peak(("mps_driver", None)),
        }

    def _read(self) -> dict[str, int]:
        """Return the current marks in bytes, by kind of memory."""
        marks = {"rss": self._resident()}
        if self._device.type == "cuda":
            counts = torch.cuda.memory_stats(self._device)
            marks["cuda_allocated"] = counts["allocated_bytes.all.peak"]
            marks["cuda_reserved"] = counts["reserved_bytes.all.peak"]
        elif self._device.type == "mps" and self._pass:  # Metal has no mark, only the memory at the end of a pass
            marks["mps_current"] = torch.mps.current_allocated_memory()
            marks["mps_driver"] = torch.mps.driver_allocated_memory()
        return marks

    def _resident(self) -> int:
        """Return the high-water mark of resident memory since the last reset, in bytes."""
        if self._resets:
            for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _on_gpu(self) -> int | None:
        """Return the bytes that this process holds on its GPU, as reported by NVML; None if NVML doesn't list it."""
        uuid = devices.gpu_uuid(self._device)
        held = gpu.process_memory_bytes(uuid, os.getpid()) if uuid else None
        if held is None or held < torch.cuda.memory_reserved(self._device):
            # Less than torch holds: it belongs to another process, which has our id outside of our container.
            return None
        return held


def _shares() -> dict[str, int]:
    """Return how much of its memory this process shares, by the kernel's summary of its mappings; empty elsewhere.

    Cells are forked from a server that has the libraries in memory, and share those pages. It takes some 15 ms.
    """
    try:
        lines = _ROLLUP.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return {}
    sizes = {name: int(size.split()[0]) * 1024 for name, _, size in (line.partition(":") for line in lines)}
    return {
        "baseline_private_bytes": sizes["Private_Clean"] + sizes["Private_Dirty"],
        "baseline_pss_bytes": sizes["Pss"],
    }
