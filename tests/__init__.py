"""The tests of the project, with rarer garbage collection, because they create little garbage."""

import gc

gc.set_threshold(50_000, 20, 50)
