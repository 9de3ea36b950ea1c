"""Full-screen pages above the overview: a device, a task."""
