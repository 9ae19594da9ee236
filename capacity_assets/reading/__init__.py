"""What is shown of the capacity database: each question is asked once here, and answered by one typed result.

Pages, report, digest, commands and metadata present these answers. They use the database's views; the report and the
digest, which look at past days, also use its tables. Times and sizes have their units in their names.
"""
