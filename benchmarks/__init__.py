"""Measurements by hand: `make bench`. Nothing here is a test, and nothing in the package imports it."""
