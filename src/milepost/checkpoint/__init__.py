"""Model state: what is captured, how it is encoded, committed, listed and restored."""
