"""The data pool: chunks shared between processes and nodes."""
