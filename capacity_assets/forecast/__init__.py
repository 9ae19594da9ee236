"""Forecasts of sizes, and how far they were off. Arithmetic over arrays: no database, no orchestration."""
