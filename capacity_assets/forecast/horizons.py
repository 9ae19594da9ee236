"""The horizons over which sizes are forecast. Apart from `model`, so that tables are defined without its arithmetic."""

from __future__ import annotations

HORIZONS_DAYS = (7, 30, 90, 365)
