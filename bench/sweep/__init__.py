"""The sweep: turn a grid into cells, find out which have no result yet, and run those."""
