"""The `capacity` command. Each module contains commands or code that several share; other packages do the work."""
