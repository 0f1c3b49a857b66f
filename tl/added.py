"""Names of what is added to a network for the time of a training (`tl.adapters`)."""

LOW_RANK = "low_rank"
"""Name of the low-rank update inside a layer that has one; see `tl.lora`."""
