"""The terminal: what runs here, what a run is, its checkpoints, and mending what was left. It reads through the store."""
