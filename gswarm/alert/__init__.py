"""Alerts: rules on metrics, events and states; what holds now; who is told."""
