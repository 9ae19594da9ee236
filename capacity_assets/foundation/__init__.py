"""What all rooms use: errors, the levels, locks, the check of the schema, writing of samples."""
