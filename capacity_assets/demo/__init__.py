"""The sample fleet and the demo that loads and computes it. Nothing else depends on this room but the commands."""
