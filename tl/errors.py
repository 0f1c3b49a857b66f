"""What callers catch: every failure that a user can cause, as one clear line.

A message names the field, the value, and what would be right. `bench` prints it without a traceback
and exits with status 2; a library caller catches `UserError` or one of its kinds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the person at the keyboard can mend. `str(error)` is a single line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(UserError):
    """A setting with a value, type or name that is not valid."""


class DataError(UserError):
    """A folder of images that is missing, incomplete, inconsistent or damaged."""


class WeightsError(UserError):
    """Pretrained weights that were asked for and can't be had, or don't fit the network."""


class DeviceError(UserError):
    """A device that this machine doesn't have, or that can't do what was asked."""


class NotApplicable(UserError):
    """A combination of valid settings that has no meaning; `bench` skips such a cell, with this reason."""


class StandInWarning(UserWarning):
    """Drawn images or random weights are used in place of what was wanted: accuracy says nothing then."""


def nearest(value: str, choices: Iterable[str], *, n: int = 1) -> list[str]:
    """The up to `n` choices that look most like `value`; empty when none is close."""
    return difflib.get_close_matches(value, list(choices), n=n, cutoff=0.6)


def not_one_of(field: str, value: object, choices: Iterable[str]) -> str:
    """One line for a value outside a closed set: `regime='frozn': not one of …; did you mean 'frozen'?`"""
    known = list(choices)
    close = nearest(str(value), known)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{field}={value!r}: not one of {', '.join(known)}{hint}"
