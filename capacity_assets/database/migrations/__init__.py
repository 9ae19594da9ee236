"""Steps of an upgrade beyond comparing tables, each named after the revision that it leads to."""
