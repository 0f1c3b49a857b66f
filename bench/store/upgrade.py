"""Upgrades of files that older versions of the format wrote: what they said in a text becomes a field.

Each upgrade changes a file's content, as JSON has it, in place, and returns whether it changed anything. A part that
has another form than the version wrote is left as it is: reading it says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import shlex
from typing import Any

_KEPT = "; so this run began, and --fresh looks again"
"""Until version 5 this stood behind the reason for drawn images in a run that went on with them."""


def upgrade_manifest(data: dict[str, Any]) -> bool:
    """Before version 6 weights went by `POLICY BACKBONE`, and the command line alone had `--data`."""
    if data["schema_version"] >= 6:
        return False
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        data["weights"] = _by_policy(data["weights"])
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        for call in data["invocations"]:
            if "data" not in call:
                call["data"] = _option("--data", call["command"])
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        data["dataset"]["stand_in"] = data["dataset"]["stand_in"].removesuffix(_KEPT)
    return True


def upgrade_record(data: dict[str, Any]) -> bool:
    """Before version 6 a note was a text alone."""
    if data["schema_version"] >= 6:
        return False
    changed = False
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        about = {"images": data["stand_in"], "weights": (data["weights"] or {}).get("reason", "")}
        if isinstance(notes := data["result"]["notes"], list):
            data["result"]["notes"] = [_note(text, about) for text in notes]
            changed = bool(notes)
    with contextlib.suppress(AttributeError, KeyError):
        changed |= data["stand_in"].endswith(_KEPT)
        data["stand_in"] = data["stand_in"].removesuffix(_KEPT)
    return changed


def _by_policy(weights: dict[str, Any]) -> dict[str, Any]:
    """`POLICY BACKBONE` → weights, as policy → backbone → weights."""
    found: dict[str, Any] = {}
    for key, value in weights.items():
        policy, blank, backbone = key.partition(" ")
        if not blank:
            raise ValueError(key)
        found.setdefault(policy, {})[backbone] = value
    return found


def _option(name: str, command: Any) -> str | None:
    """The value that an option has in a command line, the last where it has several; None where it is not there."""
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # only in a file that was edited by hand
        return None
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
    return found


def _note(text: Any, about: dict[str, str]) -> Any:
    """A note was about what its record gives as the reason for drawn images or random weights, if it ended in that."""
    if not isinstance(text, str):
        return text
    told = next((what for what, reason in about.items() if reason and text.endswith(reason)), "figures")
    return {"about": told, "text": text}
