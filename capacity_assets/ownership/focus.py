"""Bills as charges of the FinOps Open Cost and Usage Specification, FOCUS 1.2: one row per line of a bill.

docs/groups.md describes the contents of each column, and why some are empty.
"""

from __future__ import annotations

from datetime import date, timedelta

from sqlalchemy import text

from capacity_assets.base.periods import PERIODS
from capacity_assets.database.sql import sql_text

# Each version charges its lines and reverses those of the previous version: unchanged lines cancel each other out, and
# all charges up to a version add up to its lines. The total is rounded once, so each version has a charge for the
# difference.
CHARGES = """
WITH steps AS (
    SELECT b.issue, b.issue + s.later AS version, s.sign, b.currency, s.sign * round(b.amount, 2) AS total
    FROM capacity_bills b CROSS JOIN (VALUES (0, 1), (1, -1)) AS s (later, sign)
    WHERE b.month = :month AND b.issue + s.later <= :issue AND b.currency IS NOT NULL
), lines AS (
    SELECT s.version, s.currency, l.instance_id, l.database_name, l.engine, max(l.server) AS server, l.labels, l.price,
           sum(s.sign * l.gib_months) AS gib_months, sum(s.sign * l.amount) AS amount
    FROM steps s JOIN capacity_bill_lines l ON l.month = :month AND l.issue = s.issue
    WHERE l.price IS NOT NULL
    GROUP BY s.version, s.currency, l.instance_id, l.database_name, l.engine, l.labels, l.price
    HAVING s.version = 1 OR sum(s.sign * l.gib_months) <> 0
), rounding AS (
    SELECT t.version, t.currency, t.total - coalesce(sum(l.amount), 0) AS amount
    FROM (SELECT version, currency, sum(total) AS total FROM steps GROUP BY version, currency) AS t
    LEFT JOIN lines l USING (version, currency)
    GROUP BY t.version, t.currency, t.total HAVING t.total <> coalesce(sum(l.amount), 0)
), charges AS (
    SELECT version, currency, amount, gib_months, price, instance_id || '/' || database_name AS resource, database_name,
           server, engine, labels, labels || jsonb_build_object('engine', engine, 'server', server) AS facets
    FROM lines
    UNION ALL
    SELECT version, currency, amount, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM rounding
)
SELECT CAST(NULL AS text) AS "AvailabilityZone",
       c.amount AS "BilledCost",
       CAST(:issuer AS text) AS "BillingAccountId",
       CAST(:issuer AS text) AS "BillingAccountName",
       'Fleet' AS "BillingAccountType",
       c.currency AS "BillingCurrency",
       to_char(CAST(:until AS date), 'YYYY-MM-DD"T00:00:00Z"') AS "BillingPeriodEnd",
       to_char(CAST(:month AS date), 'YYYY-MM-DD"T00:00:00Z"') AS "BillingPeriodStart",
       CAST(NULL AS text) AS "CapacityReservationId",
       CAST(NULL AS text) AS "CapacityReservationStatus",
       CASE WHEN c.resource IS NULL THEN 'Adjustment' ELSE 'Usage' END AS "ChargeCategory",
       CASE WHEN c.version > 1 THEN 'Correction' END AS "ChargeClass",
       CASE WHEN c.resource IS NULL THEN 'Rounding of the total to whole cents'
            ELSE 'Storage of ' || c.database_name || ' on ' || c.server || ' at ' || trim_scale(c.price) || ' '
                 || c.currency || ' per GiB and month' END AS "ChargeDescription",
       CASE WHEN c.resource IS NULL THEN 'One-Time' ELSE 'Usage-Based' END AS "ChargeFrequency",
       to_char(CASE WHEN b.is_final THEN CAST(:until AS date) ELSE coalesce(b.billed_until + 1, :until) END,
               'YYYY-MM-DD"T00:00:00Z"') AS "ChargePeriodEnd",
       to_char(CAST(:month AS date), 'YYYY-MM-DD"T00:00:00Z"') AS "ChargePeriodStart",
       CAST(NULL AS text) AS "CommitmentDiscountCategory",
       CAST(NULL AS text) AS "CommitmentDiscountId",
       CAST(NULL AS text) AS "CommitmentDiscountName",
       CAST(NULL AS numeric) AS "CommitmentDiscountQuantity",
       CAST(NULL AS text) AS "CommitmentDiscountStatus",
       CAST(NULL AS text) AS "CommitmentDiscountType",
       CAST(NULL AS text) AS "CommitmentDiscountUnit",
       c.gib_months AS "ConsumedQuantity",
       CASE WHEN c.gib_months IS NOT NULL THEN 'GiB-Months' END AS "ConsumedUnit",
       c.amount AS "ContractedCost",
       c.price AS "ContractedUnitPrice",
       c.amount AS "EffectiveCost",
       to_char(CAST(:month AS date), 'YYYY-MM') AS "InvoiceId",
       CAST(:issuer AS text) AS "InvoiceIssuerName",
       c.amount AS "ListCost",
       c.price AS "ListUnitPrice",
       CASE WHEN c.resource IS NOT NULL THEN 'Standard' END AS "PricingCategory",
       c.gib_months AS "PricingQuantity",
       CASE WHEN c.gib_months IS NOT NULL THEN 'GiB-Months' END AS "PricingUnit",
       CAST(:issuer AS text) AS "ProviderName",
       CAST(:issuer AS text) AS "PublisherName",
       CAST(NULL AS text) AS "RegionId",
       CAST(NULL AS text) AS "RegionName",
       c.resource AS "ResourceId",
       c.database_name AS "ResourceName",
       CASE WHEN c.resource IS NOT NULL THEN 'Database' END AS "ResourceType",
       'Databases' AS "ServiceCategory",
       'Database storage' AS "ServiceName",
       'Relational Databases' AS "ServiceSubcategory",
       'storage/' || c.engine AS "SkuId",
       CASE WHEN c.resource IS NOT NULL THEN 'Storage' END AS "SkuMeter",
       CAST(NULL AS text) AS "SkuPriceDetails",
       'storage/' || c.engine AS "SkuPriceId",
       c.facets ->> :by AS "SubAccountId",
       c.facets ->> :by AS "SubAccountName",
       CASE WHEN c.facets ->> :by IS NOT NULL THEN CAST(:by AS text) END AS "SubAccountType",
       c.labels AS "Tags",
       c.version AS "x_BillVersion",
       c.engine AS "x_Engine",
       c.server AS "x_Server"
FROM charges c JOIN capacity_bills b ON b.month = :month AND b.issue = :issue
ORDER BY c.version, c.currency, c.resource NULLS LAST, c.labels, c.price
"""


def charges_of_bill(month: date, issue: int, by: str, issuer: str) -> str:
    """Return the query of the charges of a month by a version of its bill: columns of FOCUS, then three others.

    `by` is the grouping of the sub account, as in `read_bill`; `issuer` is the provider and issuer.
    """
    until = PERIODS["monthly"].window_of(month).end + timedelta(days=1)
    return sql_text(text(CHARGES).bindparams(month=month, until=until, issue=issue, by=by, issuer=issuer))
