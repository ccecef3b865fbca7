"""The terminal: what runs here, one run, its checkpoints and its code, and mending what was left."""
