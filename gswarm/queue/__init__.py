"""Workflows, tasks and their dispatch."""
