"""Tables of groups, bills and digests: whose databases they are, what they cost and what was billed.

What people declare is dated: a bill of March takes the owners and prices of March. What a label or a price means is in
`grouping`.
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import JSON, BigInteger, Boolean, Column, Date, Integer, Numeric, String, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from capacity_assets.storage.columns import instance_key, timestamp
from capacity_assets.storage.tables import table_metadata

ALWAYS = date(1, 1, 1)
"""As first day: since before anything was measured."""

PRICE = Numeric(20, 6)
# Twelve decimals: the cents of a million lines are not moved by how each was rounded.
EXACT = Numeric(30, 12)
CURRENCY = String(3)


def _valid_from(what: str) -> Column[object]:
    return Column("valid_from", Date, primary_key=True, comment=f"First day of the {what}; 0001-01-01: always")


def _key_of_group(comment: str) -> Column[object]:
    return Column("key", String(63), primary_key=True, comment=comment)


capacity_labels = Table(
    "capacity_labels",
    table_metadata,
    instance_key(),
    Column(
        "database_pattern",
        String(255),
        primary_key=True,
        comment="Database, or a pattern with * and ?; empty: the server, and what has no label of its own on it",
    ),
    _key_of_group("Key of the label, such as team"),
    _valid_from("label"),
    Column("value", String(100), comment="Value from that day on; null: none from that day on"),
    timestamp("declared_at", "When it was declared"),
    comment="Labels of servers and databases: who owns them, what they are for.",
)


capacity_prices = Table(
    "capacity_prices",
    table_metadata,
    Column("engine", String(50), primary_key=True, comment="Engine that it holds for; empty: every engine"),
    _key_of_group("Key of the label that it holds for; empty: whatever the labels are"),
    Column("value", String(100), primary_key=True, comment="Value of that label; empty: as above"),
    _valid_from("price"),
    Column("price", PRICE, comment="Currency per GiB and month; null: no price from that day on"),
    Column("currency", CURRENCY, nullable=False, comment="ISO 4217 code"),
    timestamp("declared_at", "When it was declared"),
    comment="What a GiB costs per month, by engine and label.",
)

capacity_bills = Table(
    "capacity_bills",
    table_metadata,
    Column("month", Date, primary_key=True, comment="First day of the month"),
    Column("issue", Integer, primary_key=True, autoincrement=False, comment="1: as first issued; more: restated"),
    timestamp("issued_at", "When it was computed"),
    Column("is_final", Boolean, nullable=False, comment="Whether the month was over; false: replaced by the next one"),
    Column("currency", CURRENCY, comment="ISO 4217 code; null: nothing had a price"),
    Column("amount", EXACT, nullable=False, comment="Sum of its lines, not rounded"),
    Column("gib_months", EXACT, nullable=False, comment="Sum of what was billed, GiB times months"),
    Column("unpriced_gib_months", EXACT, nullable=False, comment="The part without a price, not billed"),
    Column("measured_days", BigInteger, nullable=False, comment="Days of servers on which they were measured"),
    Column("billed_days", BigInteger, nullable=False, comment="Days of servers that were billed"),
    Column("unbilled_servers", Integer, nullable=False, comment="Servers with totals and no sizes of databases"),
    Column("label_keys", JSON, nullable=False, comment="Keys of labels by which it can be split"),
    Column("reason", Text, comment="Why it differs from the issue before; null: it is the first"),
    Column("declared_state", Text, comment="Numbers and newest times of labels and prices that were looked at last"),
    timestamp("samples_dropped_at", "When dropped samples of the month were detected; null: none", nullable=True),
    Column("clock_doubt", Text, comment="Why the bill is not final although the month seems over; null: no doubt"),
    comment="Bills per month, each issue of them.",
)

capacity_bill_lines = Table(
    "capacity_bill_lines",
    table_metadata,
    Column("month", Date, primary_key=True, comment="First day of the month"),
    Column("issue", Integer, primary_key=True, autoincrement=False, comment="Issue of the bill"),
    Column("line", Integer, primary_key=True, autoincrement=False, comment="Number of the line"),
    Column("instance_id", Integer, nullable=False, comment="Server, instances.id"),
    Column("server", String(255), nullable=False, comment="Name of the server when it was billed"),
    Column("engine", String(50), nullable=False, comment="Engine of the server"),
    Column("database_name", String(255), nullable=False, comment="Database, exactly as the server spells it"),
    Column("labels", JSONB, nullable=False, comment="Labels that it had on these days"),
    Column("days", Integer, nullable=False, comment="Days on which it was measured with these labels and this price"),
    Column("gib_months", EXACT, nullable=False, comment="What is billed, GiB times months"),
    Column("price", PRICE, comment="Currency per GiB and month; null: none is known"),
    Column("amount", EXACT, comment="Price times GiB times months, not rounded; null: no price is known"),
    comment="Lines of bills: one per database, and per set of labels and price that it had in the month.",
)

capacity_digests = Table(
    "capacity_digests",
    table_metadata,
    Column("week", Date, primary_key=True, comment="First day of the week"),
    Column("receiver", String(255), primary_key=True, comment="Name of the receiver in CAPACITY_DIGEST_RECEIVERS"),
    Column("channel", String(20), primary_key=True, comment="mail or webhook"),
    timestamp("sent_at", "When it was handed over"),
    comment="Who got the digest of which week.",
)
