"""Bringing history in from elsewhere: files with one row per sample, or the tables of a legacy database."""
