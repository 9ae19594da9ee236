"""The read model: each question about the capacity database has one statement here, and one typed answer.

Pages, report, digest, commands and metadata present these answers. They use the database's views; the report and the
digest, which look at past days, also use its tables. Times and sizes have their units in their names.
"""
