"""Steps of an upgrade that comparing tables cannot do, each named after the revision that it leads to."""
