"""Charts as inline SVG: drawn from plain numbers, styled by the page's sheet, without script."""
