"""The other process: it drains the log, writes checkpoints, feeds guests, records a death."""
