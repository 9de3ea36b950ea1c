"""Widgets that panes share."""
