"""Limits of servers and databases, and when they are reached."""
