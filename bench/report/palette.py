"""Colours and shapes of regimes, and colours of the parts of a bar. Loads no library of figures."""

from __future__ import annotations

from tl.regimes import REGIMES

COLOURS = ("#1860fc", "#b48400", "#009c6c", "#906084", "#f00048", "#fc00cc")
"""Six colours that differ for everybody: at least ΔE 20 (CIE 1976) between any two, for readers with deuteranopia and
protanopia too, and 3:1 against the cards of a page in light and dark (`tests/test_palette.py`)."""
MORE = (
    *("#2478b4", "#54783c", "#a86cfc", "#846c00", "#e4606c", "#9c8490", "#4884d8", "#b43ca8", "#c06ca8"),
    *("#b400fc", "#9048d8", "#786c6c", "#cc7830", "#54849c", "#b46048", "#d82460", "#d83018", "#1890cc"),
)
"""Colours of further regimes, with the same contrast. Of more than six no set differs for everybody, so shapes help."""
MARKERS = ("o", "s", "^", "D", "v")
"""Shapes, in matplotlib's names, which tell apart regimes of similar colours."""
INK = "#22262b"
"""Text colour in files. In a page it is replaced by the page's own colour, so that figures follow light and dark."""
GREY = "#7f8790"
"""Colour of what only gives context."""
PARTS = ("#c000cc", "#fc18b4", "#009048", "#2478a8", "#b45418", "#0c90fc", "#fc4878", "#9084d8")
"""Colours of the parts that a bar is stacked from: phases and kinds of memory, which are no regimes. Neighbours differ
for everybody as regimes do (ΔE 20), any two by ΔE 12, and all have 3:1 against the cards."""


def colours() -> dict[str, str]:
    """Regime → colour, such as `#1860fc`."""
    several = (*COLOURS, *MORE)
    return {name: several[number % len(several)] for number, name in enumerate(REGIMES)}


def markers() -> dict[str, str]:
    """Regime → shape, in matplotlib's names."""
    return {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(REGIMES)}
