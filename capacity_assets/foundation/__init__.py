"""What every room stands on: errors, the two levels, locks, the guard of the schema. No work is done here."""
