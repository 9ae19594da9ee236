"""The sample fleet of the demo: its servers, its samples, and the check that keeps real servers apart from it."""
