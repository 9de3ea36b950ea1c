"""The tests; a package, so that `tests.support` is importable however pytest is started."""
