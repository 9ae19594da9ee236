"""What labels are stored and read with. What they mean is in `labels`."""

from __future__ import annotations

from capacity_assets.storage.label_expressions import LIKE, labels_of, weights

# Whether a label `l` gave a value to something that the given label takes over: the server, or one of its databases `d`
# that the given label matches by name or by a pattern of higher precedence.
_LIKE_GIVEN = LIKE.replace("l.", "g.")
_GIVEN_WEIGHT, _OTHER_WEIGHT = (", ".join(weights(label, "d.name")) for label in ("g", "l"))
_TAKEN_OVER = f"""l.database_pattern IN (g.database_pattern, '') OR g.database_pattern <> '' AND EXISTS (
            SELECT FROM (
                SELECT g.database_pattern AS name WHERE g.database_pattern !~ '[*?]'
                UNION ALL SELECT n.name FROM unnest(CAST(:named_ids AS integer[]), CAST(:names AS varchar[]))
                              AS n (instance_id, name)
                WHERE n.instance_id = g.instance_id AND n.name LIKE {_LIKE_GIVEN}
            ) AS d
            WHERE d.name LIKE {LIKE}
              AND ({_GIVEN_WEIGHT}, l.database_pattern) > ({_OTHER_WEIGHT}, g.database_pattern))"""  # noqa: S608 -- expressions of our own
# From when each holds, and what is declared of its subject, by day.
PLACED = f"""
SELECT coalesce(g.valid_from, CASE WHEN g.value IS NULL OR EXISTS (
           SELECT FROM capacity_labels l WHERE l.instance_id = g.instance_id AND l.key = g.key AND ({_TAKEN_OVER})
       ) THEN CAST(:today AS date) ELSE CAST(:always AS date) END) AS first_day, history.*
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:database_patterns AS varchar[]), CAST(:keys AS varchar[]),
            CAST(:values AS varchar[]), CAST(:valid_froms AS date[])) WITH ORDINALITY
    AS g (instance_id, database_pattern, key, value, valid_from, number)
CROSS JOIN LATERAL (
    SELECT array_agg(l.valid_from ORDER BY l.valid_from) AS days, array_agg(l.value ORDER BY l.valid_from) AS held
    FROM capacity_labels l
    WHERE l.instance_id = g.instance_id AND l.database_pattern = g.database_pattern AND l.key = g.key
) AS history
ORDER BY g.number
"""  # noqa: S608 -- constants of this module
# Databases of servers that already have pattern labels.
NAMES = """
SELECT instance_id, database_name FROM database_size_stats WHERE instance_id = ANY (CAST(:ids AS integer[]))
UNION SELECT instance_id, database_name FROM database_size_aggregations
WHERE instance_id = ANY (CAST(:ids AS integer[]))
"""
WITH_PATTERNS = """
SELECT DISTINCT instance_id FROM capacity_labels
WHERE instance_id = ANY (CAST(:instance_ids AS integer[])) AND key = ANY (CAST(:keys AS varchar[]))
  AND database_pattern ~ '[*?]'
"""
LIST = """
SELECT i.name, s.database_pattern AS database, s.key, s.value, s.valid_from,
       CASE WHEN s.valid_until < 'infinity' THEN s.valid_until END AS valid_until
FROM capacity_label_spans s JOIN instances i ON i.id = s.instance_id
WHERE CAST(:server AS text) IS NULL OR i.name = :server
ORDER BY i.name, s.database_pattern, s.key, s.valid_from
"""
HELD = """
SELECT i.name FROM capacity_label_spans s JOIN instances i ON i.id = s.instance_id
WHERE s.key = :key AND s.database_pattern = '' AND s.value IS NOT NULL AND s.valid_until = 'infinity'
"""
MATCHING = f"""
SELECT count(*) AS matched FROM database_size_stats d
CROSS JOIN (SELECT CAST(:pattern AS text) AS database_pattern) AS l
WHERE d.instance_id = (SELECT id FROM instances WHERE name = :server)
  AND d.collected_date = (SELECT max(n.collected_date) FROM database_size_stats n
                          WHERE n.instance_id = (SELECT id FROM instances WHERE name = :server))
  AND d.database_name LIKE {LIKE}
"""  # noqa: S608 -- an expression of our own
# Where no database is named, only labels of the server match.
LABELS_ON = f"""
SELECT {labels_of("i.id", "CAST(:database AS text)", "CAST(:day AS date)")} AS labels
FROM instances i WHERE i.name = :server
"""  # noqa: S608 -- expressions of our own
HAVING = f"""
SELECT g.number
FROM unnest(CAST(:servers AS varchar[]), CAST(:databases AS varchar[])) WITH ORDINALITY AS g (server, database, number)
JOIN instances i ON i.name = g.server
WHERE (CAST(:engine_name AS text) IS NULL OR i.db_type = :engine_name)
  AND (CAST(:key AS text) IS NULL
       OR {labels_of("i.id", "g.database", "CAST(:day AS date)")} ->> CAST(:key AS text) = :value)
"""  # noqa: S608 -- expressions of our own
KNOWN = "SELECT DISTINCT key || '=' || value AS label FROM capacity_labels WHERE value IS NOT NULL"
ALIKE = """
SELECT DISTINCT value FROM capacity_labels WHERE key = :key AND lower(value) = lower(:value) ORDER BY value
"""
COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = 'instances' ORDER BY ordinal_position
"""
