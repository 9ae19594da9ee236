"""Measuring the registered servers: who they are, how each engine is asked, and what became of each one."""
