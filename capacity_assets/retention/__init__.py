"""Partitions of the tables: added ahead, and dropped when they are old and no window needs them any more."""
