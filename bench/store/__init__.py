"""What is on disk: records and their format, the folder of a run and its lock, the machine that a result is from."""
