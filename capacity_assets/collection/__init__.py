"""Measuring the registered servers: their registry, one class per engine, and the result for each."""
