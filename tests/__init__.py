"""Tests of what is beside this folder. They make little garbage, and most of it while nothing is short."""

import gc

gc.set_threshold(50_000, 20, 50)
