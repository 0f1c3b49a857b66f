"""Measures how long each phase of an epoch takes, without making the device wait.

On a CPU the host's clock times the phases. On an accelerator the host runs ahead of the device, so marks are
events in the device's own queue; they are read once, at the end of the epoch.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from tl.results import MEASURED_PHASES


class Clock:
    """Splits the time since `start` into phases: each `mark` ends one, and the next begins.

    Time that ends with `mark(None)` belongs to no phase; it counts only for the whole epoch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str | None, Any]] = []
        self._begun = 0.0
        self._stream: Any = None
        self._spare: list[Any] = []
        """Events of earlier epochs, used again: creating an event takes ten times as long as recording it."""

    def start(self) -> None:
        """Begin an epoch, after waiting for queued work of the device, which belongs to no epoch."""
        synchronize(self._device)
        if self._device.type != "cpu":
            self._spare += [event for _, event in self._marks]
        if self._device.type == "cuda":
            self._stream = torch.cuda.current_stream(self._device)
        self._begun = time.perf_counter()
        self._marks = [(None, self._now())]

    def mark(self, phase: str | None) -> None:
        """End a phase now; None ends time that belongs to no phase."""
        self._marks.append((phase, self._now()))

    def elapsed(self) -> float:
        """Return the seconds of the epoch so far; waits for the device."""
        synchronize(self._device)
        return time.perf_counter() - self._begun

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the seconds of the epoch so far, and of each phase; waits for the device once."""
        whole = self.elapsed()
        parts = dict.fromkeys(MEASURED_PHASES, 0.0)
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                parts[phase] += self._between(before, after)
        return whole, parts

    def _now(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        if self._device.type == "cuda":
            event: Any = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            event.record(self._stream)
        else:
            event = self._spare.pop() if self._spare else torch.mps.Event(enable_timing=True)
            event.record()
        return event

    def _between(self, before: Any, after: Any) -> float:
        if self._device.type == "cpu":
            return float(after - before)
        return float(before.elapsed_time(after)) / 1000


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
