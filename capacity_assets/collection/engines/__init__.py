"""One class per engine: its connection, one query for the sizes, the meaning of its errors.

An engine is registered in `pyproject.toml`, as an entry point of the group `capacity_assets.engines`.
"""
