"""Nodes, devices, events and tokens."""
