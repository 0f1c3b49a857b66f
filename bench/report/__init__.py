"""Reports: what a run found, as Markdown and as one self-contained HTML file.

Nothing is imported here: `summary` loads at once, drawing takes seconds.
"""
