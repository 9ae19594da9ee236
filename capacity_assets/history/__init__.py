"""History: importing it, copying it, and how long it is kept."""
