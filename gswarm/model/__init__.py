"""Models: stored once, served where they fit."""
