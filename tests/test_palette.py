"""Tests the colours of figures: their contrast with both cards of a page, and that nobody takes one for another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt
import pytest

from bench.report.pages import style
from bench.report.palette import COLOURS, GREY, MORE, PARTS, colours, markers
from tl.regimes import REGIMES
from tl.results import PHASES

Numbers = npt.NDArray[np.float64]
SEEN = {
    "usual sight": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
"""How linear sRGB is seen: Machado, Oliveira and Fernandes 2009, severity 1."""
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> Numbers:
    """Linear sRGB of `#rrggbb`, from 0 to 1."""
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(colour: str, seen: str) -> Numbers:
    """CIELAB of a colour as it is seen, under D65."""
    xyz = TO_XYZ @ np.clip(SEEN[seen] @ linear(colour), 0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((float(TO_XYZ[1] @ linear(each)) for each in (one, other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


CARDS = re.findall(r"--card: (#\w{6})", style())
VERDICTS = ("bad", "accent", "soft")
"""Colours of what is worse, better and undecided in a comparison."""


@pytest.mark.parametrize("colour", [*COLOURS, *MORE, GREY, *PARTS])
def test_marks_stand_out_from_the_card(colour: str) -> None:
    """At least 3:1 in light and dark (WCAG 1.4.11)."""
    assert len(CARDS) == 2 and min(contrast(colour, card) for card in CARDS) >= 3


@pytest.mark.parametrize("seen", SEEN)
def test_no_two_colours_look_alike(seen: str) -> None:
    """The closest pair is at least ΔE 20 apart (CIE 1976)."""
    apart = {pair: float(np.linalg.norm(lab(pair[0], seen) - lab(pair[1], seen))) for pair in combinations(COLOURS, 2)}
    assert min(apart.values()) >= 20, min(apart.items(), key=lambda item: item[1])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_of_a_comparison_differ_for_everybody(scheme: str) -> None:
    """Also as marks on a card, in light and dark."""
    block = re.findall(r":root \{(.*?)\}", style(), re.DOTALL)[scheme == "dark"]
    colour = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    assert min(contrast(colour[name], colour["card"]) for name in VERDICTS) >= 4.5
    for seen in SEEN:
        for one, other in combinations(VERDICTS, 2):
            assert np.linalg.norm(lab(colour[one], seen) - lab(colour[other], seen)) >= 20, (seen, one, other)
    for name, classes in (("bad", "worse"), ("accent", "better"), ("soft", "open")):
        assert re.search(rf"\.{classes}\b[^{{}}]*\{{ color: var\(--{name}\)", style())


def test_regimes_that_look_alike_have_different_shapes() -> None:
    """Regimes beyond the first six may resemble one of them: the nearest one has another shape."""
    looks = [(colours()[name], markers()[name]) for name in REGIMES]
    assert len({colour for colour, _ in looks}) == len(looks) and [colour for colour, _ in looks[:6]] == [*COLOURS]
    for seen in SEEN:
        for (one, shape), (other, its_shape) in combinations(looks, 2):
            apart = float(np.linalg.norm(lab(one, seen) - lab(other, seen)))
            assert apart >= 3 or shape != its_shape, (seen, one, other, apart)


def nearest(pairs: Iterable[tuple[str, str]]) -> float:
    """The smallest distance of two colours of a pair, for whoever sees them closest."""
    return min(float(np.linalg.norm(lab(one, seen) - lab(other, seen))) for one, other in pairs for seen in SEEN)


def test_parts_of_a_bar_have_colours_of_their_own() -> None:
    """A phase is never taken for one of the usual regimes, nor for the phase beside it, also where one is missing."""
    assert not {*PARTS} & {*COLOURS, *MORE} and nearest(product(PARTS, COLOURS)) >= 12
    assert nearest(pairwise(PARTS)) >= 20 and nearest(combinations(PARTS, 2)) >= 12
    names = [*PHASES]
    beside = {"data": "forward", "backward": "validation", "forward": "validation"}  # without GPU, by SGD, frozen
    assert nearest((PARTS[names.index(one)], PARTS[names.index(other)]) for one, other in beside.items()) >= 20
