"""The read model: each question about the capacity database has one statement here, and one typed answer.

Pages, report, digest, commands and metadata present the answers. Statements read the views of the database; those of
the report and the digest, which look at past days, also read its tables. Names of times and sizes end in their units.
"""
