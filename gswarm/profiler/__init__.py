"""Metrics of devices, streamed, recorded and replayed."""
