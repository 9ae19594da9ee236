"""Charts as inline SVG, drawn from plain numbers, styled by the style sheet of the page."""
