"""Reports of what a run found, as Markdown and as one self-contained HTML file.

This file imports nothing, since `summary` loads at once and matplotlib takes seconds.
"""
