"""Bytes: durable files, shared memory, locks, processes. Each Linux-only trick has a plain fallback here."""
