"""Ctrl-C: once, and nothing new begins; twice, and all ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_between_cells(announce: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; it calls `announce` the first time, and raises `KeyboardInterrupt` from then on.

    In any thread but the main one, which alone hears signals, nothing changes.
    """
    asked = False

    def handle(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with contextlib.suppress(Exception):  # the signal may have come in the middle of another line
            announce()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_held: list[dict[signal.Signals, Any]] = []
"""Of each `signals_deferred` that is under way: what the signals would have done."""
_came: list[int] = []
"""Signals that wait."""


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """What would end the command waits for the next `signals_delivered`, or for the end of this block: between the two,
    what was begun is ended, and a cell that has ended is kept. An error in the block goes before it.

    In any thread but the main one, which alone hears signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held.append(_set(dict.fromkeys(_SIGNALS, lambda number, _: _came.append(number))))
    try:
        yield
    except BaseException:
        _set(_held.pop())
        _came.clear()
        raise
    _set(_held.pop())
    _deliver()


@contextlib.contextmanager
def signals_delivered() -> Iterator[None]:
    """Inside `signals_deferred`: deliver the signals that have come since, and those of this block at once."""
    if not _held or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _set(_held[-1])
    try:
        _deliver()
        yield
    finally:
        _set(before)


def _set(handlers: dict[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Returns those that there were."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def _deliver() -> None:
    while _came:
        signal.raise_signal(_came.pop(0))


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a command as a second Ctrl-C does: children are ended, what is done is kept.

    In any thread but the main one, which alone receives signals, nothing changes.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
