"""Whose databases they are and what they cost: labels, groups, prices, bills and budgets."""
