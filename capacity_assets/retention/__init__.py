"""Partitions of the tables: added ahead, and dropped when they are old and nothing reads them any more."""
