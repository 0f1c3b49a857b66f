"""Exceptions that callers catch: each is a mistake that a user can make, with a message of one line.

A message names the field, the value, and what would be right. `bench` prints it without a traceback
and exits with status 2. Callers of the library catch `UserError` or one of its subclasses.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can correct. `str(error)` is a single line.

    `details` has what belongs below the message, such as the files that it counts: a terminal shows a line each.
    """

    def __init__(self, message: str = "", *, details: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(" ".join(text.split()) for text in details)

    @property
    def headline(self) -> str:
        """The message without details, as a single line."""
        return " ".join(super().__str__().split())

    def __str__(self) -> str:
        return f"{self.headline}: {'; '.join(self.details)}" if self.details else self.headline


class ConfigError(UserError):
    """A setting whose name, type or value is not valid."""


class DataError(UserError):
    """A folder of images that is missing, incomplete, inconsistent or damaged."""


class WeightsError(UserError):
    """Pretrained weights that are required but not available, or that don't fit the network."""


class DeviceError(UserError):
    """A device that this machine doesn't have, or that doesn't support what was requested."""


class ModelError(UserError):
    """The folder of a trained model that is missing, damaged, or written by a newer version."""


class NotApplicable(UserError):
    """A combination of valid settings that can't run here. `bench` skips such a cell and shows the reason."""


class DivergedError(UserError):
    """A training whose loss, or whose outputs for validation images, are no longer finite numbers.

    It has no accuracy: the largest of several NaN is the first one, so such a network would seem to predict class 0.
    The message says in which epoch it happened, and in which figure. `bench` records such a cell as `diverged`.
    """

    def __init__(self, reason: str, epochs: Iterable[Any] = ()) -> None:
        super().__init__(reason)
        self.epochs: tuple[Any, ...] = tuple(epochs)
        """An `EpochResult` of each epoch before; all their losses are finite."""


class FallbackWarning(UserWarning):
    """Synthetic images or random weights replace the requested ones, so accuracy is meaningless."""


class CacheWarning(UserWarning):
    """A file of the cache is damaged and is rebuilt: this takes time, and changes no result."""


class DataWarning(UserWarning):
    """Images are probably missing from a data set, or the same in training and validation or in two classes."""


def nearest(value: str, choices: Iterable[str], *, n: int = 1) -> list[str]:
    """Return up to `n` choices that look most like `value`; none if no choice is close."""
    return difflib.get_close_matches(value, list(choices), n=n, cutoff=0.6)


def near_matches(value: str, choices: Iterable[str]) -> str:
    """Return the end of a message that names up to three choices which look like `value`; empty if none does."""
    close = nearest(value, choices, n=3)
    return f"; near matches: {', '.join(close)}" if close else ""


def not_one_of(field: str, value: object, choices: Iterable[str]) -> str:
    """Return a message about a value outside a closed set: `regime='frozn': not one of …; did you mean 'frozen'?`"""
    known = list(choices)
    close = nearest(str(value), known)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{field}={value!r}: not one of {', '.join(known)}{hint}"
