"""When limits are reached: sizes, limits, forecasts, issued runways and how far they were off."""
