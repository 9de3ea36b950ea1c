"""Fakes and real-process fixtures that several tests share."""
