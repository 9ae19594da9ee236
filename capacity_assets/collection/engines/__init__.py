"""One class per engine: how to connect, one query for the sizes, what its errors mean."""
