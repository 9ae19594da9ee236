"""One class per engine: how to connect, one query for the sizes, what its errors mean.

An engine is registered in `pyproject.toml`, as an entry point of the group `capacity_assets.engines`.
"""
