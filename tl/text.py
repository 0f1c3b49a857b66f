"""How text from data is shown: names, reasons and paths may hold characters that nobody sees, or that act.

An escape sequence moves a terminal's cursor, a bidirectional mark turns the order of what follows round, and a
zero-width character makes two names look alike. Everything that shows text shows these as escapes.
"""

from __future__ import annotations

import json
import re

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 controls, DEL, C1 controls
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200d\u2060-\u2065\u3164\ufeff\uffa0"  # seen as nothing
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # the order of writing
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ufff0-\ufffb"  # annotations
    "\ud800-\udfff"  # bytes that are no text
    "\U000e0000-\U000e0fff"  # tags
    "]"
)
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula."""


def visible(text: object, keep: str = "") -> str:
    """Return text with hidden characters as escapes such as `\\x1b`, but those in `keep` as they are.

    What has been made visible stays as it is, so it does no harm to do it twice.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), str(text))


def without_hidden(text: str) -> str:
    """Return text without its hidden characters, as a reader sees it; also without variation selectors."""
    return re.sub("[\ufe00-\ufe0f]", "", _HIDDEN.sub("", text))


LONGEST_SHOWN = 200
"""Most characters of a given value in a message."""


def shortened(text: object) -> str:
    """Return text for a message, without its middle if it is longer than `LONGEST_SHOWN`: a path ends with its name."""
    whole, half = str(text), LONGEST_SHOWN // 2
    return whole if len(whole) <= LONGEST_SHOWN else f"{whole[:half]}…{whole[-half:]}"


def visible_json(text: str) -> str:
    """Return JSON that means the same, with hidden characters in its strings as JSON's own escapes."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in "\n\t" else json.dumps(found[0])[1:-1], text)


def csv_text(text: str) -> str:
    """Return the text of a CSV file's cell: visible, and with an apostrophe before what would be a formula.

    Without it, a spreadsheet would run `=HYPERLINK(…)` in a name. Numbers are no text: `-0.5` stays a number.
    """
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
