"""A run's record: the log, its reader, the projections made from it."""
