"""Words: errors, configuration, events, records, protocols. Standard library and numpy only."""
