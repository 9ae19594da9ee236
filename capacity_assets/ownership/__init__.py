"""Whose databases they are and what they cost: labels, groups, prices and bills."""
