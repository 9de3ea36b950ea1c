"""Planning: pure code, no I/O, nothing of ours imported."""
