"""The data on disk: the format of records, the folder of a run and its lock, and the environment of a result."""
