"""What can serve a model."""
