"""The fingerprint of the statement that computes."""

from __future__ import annotations

import hashlib

from capacity_assets.aggregates.figures import FIGURES_REVISION, aggregation_statement, fingerprint, sums_fingerprint
from capacity_assets.aggregates.groups import GROUP_DAYS, GROUPS_REVISION, SERVERS_LEFT_OUT
from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import PERIODS

# If only the text changes, renew the digest. If figures change, raise the number too.
KNOWN = (1, "f4c7a0100c55699d")


def test_a_statement_with_other_figures_needs_another_number() -> None:
    statements = [aggregation_statement(level) for level in LEVELS.values()]
    texts = [f"{one} {sorted(one.params.items(), key=repr)}" for one in statements]

    assert (FIGURES_REVISION, hashlib.sha256("".join(texts).encode()).hexdigest()[:16]) == KNOWN


# Those of revision 0021, for servers 1 and 2. Another one makes windows that no change affects be computed again.
FINGERPRINTS = {
    "database": (
        "10d57029dc97f2e55bd1c294f4b2853f",
        *("b2275d41427a8498db91fb24bfa2a808", "65dc9b4f844184391afdcc9e4776efdb", "4230bb3a89daf03c0e6243143b0da186"),
        *("273296b6241e669180e666f35d9efb8e", "cce4a5693b49e8d9f59e685f6a4c47d1"),
    ),
    "instance": (
        "b41180f13b200b7e2f44ae9393fedeed",
        *("ca32fe8ed1e03e8108a41f86a6708c4d", "22e45bd1398c0376679573084b235df7", "50f0bf670a8515a22bb92fb5b31d25ec"),
        *("90a8162c1d4ce2668756a3355c34c875", "a846392ee0492d1bfcaa836c08a83932"),
    ),
    "group": (
        "0713de04220d27406fa8b2c9c115274a",
        *("d602caf62ed20088a7daaae5069809d7", "9df0a2064179c7b7f13a899f6a816273", "69db564fdc3ba24630d19bfb2b03557e"),
        *("11de6ec8754306fda02146867ea6013c", "0a6dcd7c82457ee59dc7f48818172876"),
    ),
}


def test_windows_of_former_revisions_count_as_computed_the_same_way() -> None:
    for level in LEVELS.values():
        sums, *own = FINGERPRINTS[level.name]
        assert sums_fingerprint(level) == sums
        found = [fingerprint(level, period, [1, 2]) for period in PERIODS.values()]
        assert found == [f"{one}{sums}" for one in own], level.name


# If only the text changes, renew the digest. If the same samples give other groups, raise the number too.
KNOWN_GROUPS = (1, "9c1158270050d96d")


def test_statements_with_other_groups_need_another_number() -> None:
    texts = GROUP_DAYS + SERVERS_LEFT_OUT

    assert (GROUPS_REVISION, hashlib.sha256(texts.encode()).hexdigest()[:16]) == KNOWN_GROUPS
