"""Upgrades files of older versions of the format, which kept some fields as parts of a text.

Each upgrade changes a file's parsed JSON in place, and returns true if it changed anything. It leaves parts of an
unexpected form unchanged; reading them reports what is wrong.
"""

from __future__ import annotations

import contextlib
import shlex
from typing import Any

from tl.regimes import REGIMES

_KEPT = "; so this run began, and --fresh looks again"
"""Until version 5, this text followed the reason for synthetic images in a run that continued with them."""


def upgrade_manifest(data: dict[str, Any]) -> bool:
    """Before version 6, weights had keys `POLICY BACKBONE`, `--data` was only in the command line, and the data set's
    `fallback` was called `stand_in`. Before version 10, no backbone ran folded.
    """
    changed = False
    if data["schema_version"] < 10:
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            changed = sum(map(_not_folded, data["cells"].values())) > 0
    if data["schema_version"] >= 6:
        return changed
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        data["weights"] = _by_policy(data["weights"])
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        for call in data["invocations"]:
            if "data" not in call:
                call["data"] = _option("--data", call["command"])
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        data["dataset"]["fallback"] = data["dataset"].pop("stand_in").removesuffix(_KEPT)
    return True


def upgrade_record(data: dict[str, Any]) -> bool:
    """Upgrade a record.

    Before version 6, a note was a plain text, and `fallback` was called `stand_in`. Before version 7, a cell whose loss
    was not finite was `done`. Before version 10, no backbone ran folded, which is now usual where features are
    extracted once.
    """
    version = data["schema_version"]
    changed = version < 10 and _not_folded(data.get("cell"))
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        if changed and data["result"]:
            data["result"]["config"] = data["cell"]["config"]
    if version >= 7:
        return changed
    if version < 6:
        _name_fallback(data)
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        _mark_diverged(data)
    return True


def _not_folded(cell: Any) -> bool:
    """Say of a cell that its backbone ran as it was, where that isn't usual any more. Returns true if it did so."""
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        config = cell["config"]
        if REGIMES[config["regime"]].features == "once" and "fold" not in config:
            config["fold"] = False
            return True
    return False


def _name_fallback(data: dict[str, Any]) -> None:
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        about = {"images": data["stand_in"], "weights": (data["weights"] or {}).get("reason", "")}
        if isinstance(notes := data["result"]["notes"], list):
            data["result"]["notes"] = [_note(text, about) for text in notes]
    with contextlib.suppress(AttributeError, KeyError):
        data["fallback"] = data.pop("stand_in").removesuffix(_KEPT)


def _mark_diverged(data: dict[str, Any]) -> None:
    """Give a cell with a loss or a confidence that is not finite its status; keep the epochs before.

    Such a figure was None. A trial of a learning rate keeps no accuracy if its loss is None.
    """
    result = data["result"]
    if result is None:
        return
    found = _not_finite(result)
    for trial in result.get("trials", ()):
        if trial["held_out_loss"] is None:
            trial["held_out_accuracy"], trial["reason"] = None, "the loss was not finite"
    if found is None:
        return
    epoch, what = found
    data["status"], data["reason"] = "diverged", f"the {what} was not finite in epoch {epoch + 1}"
    data["epochs"], data["result"] = result["epochs"][:epoch], None


def _not_finite(result: dict[str, Any]) -> tuple[int, str] | None:
    """The first epoch with a figure that is not finite, from 0, and the figure; None if all are finite."""
    for number, row in enumerate(result["epochs"]):
        if row["train_loss"] is None and row["train_seconds"] is not None:
            return number, "training loss"
        if row["val_loss"] is None:
            return number, "validation loss"
    for predictions in (result["best"], result["last"]):
        if None in predictions["confidences"]:
            return predictions["epoch"], "output for a validation image"
    return None


def _by_policy(weights: dict[str, Any]) -> dict[str, Any]:
    """Turn `POLICY BACKBONE` → weights into policy → backbone → weights."""
    found: dict[str, Any] = {}
    for key, value in weights.items():
        policy, blank, backbone = key.partition(" ")
        if not blank:
            raise ValueError(key)
        found.setdefault(policy, {})[backbone] = value
    return found


def _option(name: str, command: Any) -> str | None:
    """The last value of an option in a command line; None if the option is not given."""
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # possible only if the file was edited by hand
        return None
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
    return found


def _note(text: Any, about: dict[str, str]) -> Any:
    """A note on images or weights ends with the reason for synthetic images or random weights; others are figures."""
    if not isinstance(text, str):
        return text
    subject = next((what for what, reason in about.items() if reason and text.endswith(reason)), "figures")
    return {"about": subject, "text": text}
