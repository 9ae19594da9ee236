"""Bringing history in from elsewhere: files with a row a sample, or the tables of a legacy database."""
