"""Where cells run: executors, the process of a cell, what watches over it, and what it can run on."""
