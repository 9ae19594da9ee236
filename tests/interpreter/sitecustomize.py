"""What every Python process that a test starts does first: search for garbage rarely.

Loading Dagster leaves none, and looking for it took a tenth to a fifth of the time of hundreds of processes.
"""

import gc

gc.set_threshold(50_000, 20, 50)
