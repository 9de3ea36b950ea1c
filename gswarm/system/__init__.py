"""This machine: starting and stopping, checking, settings, logs."""
