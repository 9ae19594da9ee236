"""Owners and costs of databases: labels, groups, prices, bills and budgets."""
