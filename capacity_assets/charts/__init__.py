"""Charts as inline SVG for pages: drawn from plain numbers, styled by the page's sheet, without script."""
