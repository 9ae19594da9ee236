"""The fingerprint of the statement that computes."""

from __future__ import annotations

import hashlib

from capacity_assets.aggregates.figures import ARITHMETIC, aggregation_statement
from capacity_assets.aggregates.levels import LEVELS

# If only the text changes, renew the digest. If figures change, raise the number too.
KNOWN = (1, "15e16fe1e7cd0f74")


def test_a_statement_with_other_figures_needs_another_number() -> None:
    statements = [aggregation_statement(level) for level in LEVELS.values()]
    texts = [f"{one} {sorted(one.params.items(), key=repr)}" for one in statements]

    assert (ARITHMETIC, hashlib.sha256("".join(texts).encode()).hexdigest()[:16]) == KNOWN
