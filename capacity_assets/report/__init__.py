"""The growth report: one window of the fleet, or of one server, as a page that stands for itself."""
