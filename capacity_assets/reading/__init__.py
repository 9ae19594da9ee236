"""The read model: each question about the capacity database has one statement and one typed answer here.

Pages, report, digest, commands and metadata present the answers. Statements for pages read the views, the others also
the tables. Names of times and sizes end in their units.
"""
