"""Placeholder while the package is written."""
