"""Signals: the first Ctrl-C stops a sweep after the running cells, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_between_cells(announce: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns true once Ctrl-C was pressed.

    The first Ctrl-C calls `announce`; later ones raise `KeyboardInterrupt`. Only the main thread receives signals: in
    other threads this does nothing.
    """
    pressed = False

    def handle(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        with contextlib.suppress(Exception):  # the signal may have interrupted another write to the terminal
            announce()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


_HANGUP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()
_OF_TERMINAL = (signal.SIGINT, *_HANGUP)
_ENDING = (signal.SIGTERM, *_HANGUP)
"""Signals that end a command: SIGTERM comes before a kill, and SIGHUP when the terminal has gone."""
_SIGNALS = (signal.SIGINT, *_ENDING)
_handlers: list[dict[signal.Signals, Any]] = []
"""One entry per active `signals_deferred`: the handlers from before it."""
_pending: list[int] = []
"""Signals that were received but not delivered yet."""
_is_ending_handled = False
"""True inside `ending_as_interrupt`."""


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP until the next `signals_delivered`, or until the end of this block.

    In between, the suite can finish what it does, such as writing the record of a cell that has ended. An error in the
    block discards the deferred signals. Only the main thread receives signals: in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _handlers.append(_set(dict.fromkeys(_SIGNALS, lambda number, _: _pending.append(number))))
    try:
        yield
    except BaseException:
        _set(_handlers.pop())
        _pending.clear()
        raise
    _set(_handlers.pop())
    _deliver()


@contextlib.contextmanager
def signals_delivered() -> Iterator[None]:
    """Inside `signals_deferred`: deliver the deferred signals now, and those received in this block at once."""
    if not _handlers or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _set(_handlers[-1])
    try:
        _deliver()
        yield
    finally:
        _set(before)


def block_terminal_signals() -> None:
    """Hold back the signals that a terminal sends, SIGINT and SIGHUP, in this thread and in processes that it starts.

    `deliver_terminal_signals` or `ignore_terminal_signals` ends that. A signal that is held back is not lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINAL)


def deliver_terminal_signals() -> None:
    """Deliver the signals that were held back, and later ones at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINAL)


def ignore_terminal_signals() -> None:
    """Ignore the signals that a terminal sends from now on, and those that were held back."""
    _set(dict.fromkeys(_OF_TERMINAL, signal.SIG_IGN))
    deliver_terminal_signals()


def _set(handlers: dict[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Install handlers, and return the previous ones."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def _deliver() -> None:
    try:
        while _pending:
            signal.raise_signal(_pending.pop(0))
    finally:
        _pending.clear()  # what the first one ends, the others needn't end again


@contextlib.contextmanager
def ending_as_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `KeyboardInterrupt`, so that child processes end and finished cells are kept.

    Only the first one does: when a terminal closes, SIGHUP may come from the kernel and from the shell, and the second
    must not disturb what the first has begun. A signal that is ignored, as SIGHUP under `nohup`, stays ignored. Only
    the main thread receives signals: in other threads, and inside another such block, this does nothing.
    """
    global _is_ending_handled
    ending = False

    def stop(*_: object) -> None:
        nonlocal ending
        if not ending:
            ending = True
            raise KeyboardInterrupt

    if _is_ending_handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _set({number: stop for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN})
    _is_ending_handled = True
    try:
        yield
    finally:
        _is_ending_handled = False
        _set(before)
