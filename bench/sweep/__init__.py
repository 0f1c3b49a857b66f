"""A sweep: from a grid to cells, which of them are missing, and running those."""
