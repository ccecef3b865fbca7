"""Where a run ran: host, devices, packages, code, ranks."""
