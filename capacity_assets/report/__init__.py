"""The growth report: one window of the fleet, or of one server, as one self-contained page."""
