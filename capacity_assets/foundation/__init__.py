"""What all rooms use: errors, the two levels, locks, the check of the schema, writing of samples."""
