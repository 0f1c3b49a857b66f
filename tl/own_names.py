"""Names of source `module`: import paths of functions of one's own that make backbones. Loads no torch."""

from __future__ import annotations

from tl.own_code import ImportPath, digest_of
from tl.sources import Names

NAMES = Names(
    form="MODULE:NAME",
    summary="a backbone that a function of yours makes",
    canonical=lambda name: ImportPath.parse("backbone", name).text,
    digest=lambda name: digest_of(ImportPath.parse("backbone", name)),
)
