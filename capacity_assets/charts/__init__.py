"""Charts as inline SVG, and the template environment and style sheets of pages, reports and mails.

A new form of chart is a function in `drawing.py`, its template `templates/NAME.svg.j2`, and, for pages, its values in
`web/rendering.py`.
"""
