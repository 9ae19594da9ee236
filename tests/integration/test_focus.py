"""Bills as charges of FOCUS 1.2: complete, exact, corrected where restated, and accepted by the official validator."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.bills import billed
from tests.command import capacity, printed

pytestmark = pytest.mark.usefixtures("billed_fleet")

# The columns of the specification, 1.2, that may not be null, that may, and those for providers who price and bill in
# different currencies, which are left out. Then what is allowed in a column, where that is listed.
NOT_NULL = [
    "BilledCost", "BillingAccountId", "BillingAccountType", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "ProviderName", "PublisherName",
    "ServiceCategory", "ServiceName", "ServiceSubcategory",
]  # fmt: skip
NULLABLE = [
    "AvailabilityZone", "BillingAccountName", "CapacityReservationId", "CapacityReservationStatus", "ChargeClass",
    "ChargeDescription", "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName",
    "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType", "CommitmentDiscountUnit",
    "ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "InvoiceId", "ListUnitPrice", "PricingCategory",
    "PricingQuantity", "PricingUnit", "RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType",
    "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName", "SubAccountType",
    "Tags",
]  # fmt: skip
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"Databases"},
    "ServiceSubcategory": {"Relational Databases"},
}
NEEDED_FOR_USAGE = [
    "ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "ListUnitPrice", "PricingCategory",
    "PricingQuantity", "PricingUnit", "ResourceId", "ResourceName", "ResourceType", "SkuId", "SkuMeter",
    "SkuPriceId",
]  # fmt: skip
PAIRS = [("SubAccountId", "SubAccountName"), ("SubAccountId", "SubAccountType"), ("PricingQuantity", "PricingUnit")]
COSTS = ("EffectiveCost", "ContractedCost", "ListCost")
# The published validator knows FOCUS 1.0, but has other names than the specification for these, and a rule of a column
# that 1.0 has no longer: ChargeType, now ChargeCategory.
NAMES_OF_VALIDATOR = {
    "InvoiceIssuerName": "InvoiceIssuer",
    "ProviderName": "Provider",
    "PublisherName": "Publisher",
    "ResourceId": "ResourceID",
}
VALIDATOR = Path("build/focus/bin/focus-validator").absolute()


def charges(*more: str) -> list[dict[str, str]]:
    output = printed("bill", "--month", "2025-06", "--format", "focus", *more)
    return list(csv.DictReader(io.StringIO(output, newline="")))


def billed_cost(rows: list[dict[str, str]]) -> Decimal:
    return sum((Decimal(row["BilledCost"]) for row in rows), Decimal())


def bill_with_two_versions(engine: Engine) -> tuple[str, str]:
    """Declare labels and prices that change within June, and correct a sample; returns the totals of both versions."""
    printed("prices", "set", "0.30", "--currency", "EUR", "--always")
    printed("prices", "set", "0.6123", "--currency", "EUR", "--from", "2025-06-21", "--restate")
    printed("labels", "set", "server-1", "team=payments", "--database", "a")
    printed("labels", "set", "server-1", "team=search", "--database", "a", "--from", "2025-06-11")
    first = billed()["bill"]["amount"]
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE database_size_stats SET size_mb = 50 * 1024, updated_at = now() + interval '1 second' "
                "WHERE instance_id = 1 AND database_name = 'b' AND collected_date = '2025-06-30'"
            )
        )
    return first, billed()["bill"]["amount"]


def test_charges_add_up_to_each_version_of_the_bill_and_a_restated_one_adds_corrections(engine: Engine) -> None:
    first, second = bill_with_two_versions(engine)

    earlier, later = charges("--issue", "1"), charges()

    assert (first, second) == ("12.12", "12.74")
    assert billed_cost(earlier) == Decimal(first)
    assert billed_cost(later) == Decimal(second)
    assert later[: len(earlier)] == earlier, "what was loaded of the first version stays as it is"
    assert {row["ChargeClass"] for row in earlier} == {""}
    found = [
        (row["ChargeClass"], row["ResourceName"], row["SubAccountName"], row["PricingQuantity"], row["BilledCost"])
        for row in later
    ]
    assert found == [
        ("", "a", "payments", "3.333333333333", "1.000000000000"),
        ("", "a", "search", "3.333333333333", "1.000000000000"),
        ("", "a", "search", "3.333333333333", "2.041000000000"),
        ("", "b", "", "13.333333333333", "4.000000000000"),
        ("", "b", "", "6.666666666667", "4.082000000000"),
        ("", "", "", "", "-0.003000000000"),
        ("Correction", "b", "", "1.000000000000", "0.612300000000"),
        ("Correction", "", "", "", "0.007700000000"),
    ]
    assert later[2]["ChargeDescription"] == "Storage of a on server-1 at 0.6123 EUR per GiB and month"
    assert json.loads(later[0]["Tags"]) == {"team": "payments"}
    assert {row["SubAccountType"] for row in charges("--by", "engine") if row["ResourceId"]} == {"engine"}


def test_another_currency_takes_the_charges_back_in_the_former_one() -> None:
    printed("prices", "set", "0.10", "--currency", "EUR", "--always")
    assert billed()["bill"]["amount"] == "3.00"
    printed("prices", "remove", "--restate")
    printed("prices", "set", "0.20", "--currency", "USD", "--always")

    found = charges()

    sums = {
        currency: billed_cost([row for row in found if row["BillingCurrency"] == currency])
        for currency in ("EUR", "USD")
    }
    assert sums == {"EUR": Decimal(0), "USD": Decimal(6)}


def test_charges_keep_the_rules_of_the_specification(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_BILL_ISSUER", "Database platform")
    bill_with_two_versions(engine)

    found = charges()

    names = list(found[0])
    of_focus = [name for name in names if not name.startswith("x_")]
    assert of_focus == sorted(NOT_NULL + NULLABLE)
    assert names[len(of_focus) :] == ["x_BillVersion", "x_Engine", "x_Server"]
    for row in found:
        assert all(row[name].strip() for name in NOT_NULL)
        assert all(row[name] in allowed for name, allowed in ALLOWED.items())
        assert {bool(row[name]) for name in NEEDED_FOR_USAGE} == {row["ChargeCategory"] == "Usage"}
        assert all(bool(row[one]) == bool(row[other]) for one, other in PAIRS)
        assert all(row[cost] == row["BilledCost"] for cost in COSTS)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00Z", row[name]) for name in row if "Period" in name)
        assert row["ProviderName"] == row["InvoiceIssuerName"] == row["BillingAccountId"] == "Database platform"
        assert row["ResourceId"] != row["ResourceName"] or not row["ResourceId"]
        if row["ChargeCategory"] == "Usage":
            product = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
            assert abs(product - Decimal(row["ListCost"])) < Decimal("1e-11")
            assert (row["ListUnitPrice"], row["PricingUnit"]) == (row["ContractedUnitPrice"], "GiB-Months")
    assert {(row["BillingPeriodStart"], row["ChargePeriodEnd"], row["InvoiceId"]) for row in found} == {
        ("2025-06-01T00:00:00Z", "2025-07-01T00:00:00Z", "2025-06")
    }


def test_a_month_that_is_not_over_ends_its_charge_period_after_the_last_sample() -> None:
    printed("prices", "set", "0.10", "--currency", "EUR", "--always")

    rows = list(csv.DictReader(io.StringIO(printed("bill", "--month", "2025-07", "--format", "focus"), newline="")))

    assert {(row["ChargePeriodEnd"], row["BillingPeriodEnd"]) for row in rows} == {
        ("2025-07-19T00:00:00Z", "2025-08-01T00:00:00Z")
    }


def test_a_file_says_what_it_leaves_out_and_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    printed("labels", "set", "server-1", "environment=test", "--database", "a")
    printed("prices", "set", "0.20", "--currency", "EUR", "--label", "environment=test", "--always")
    asked = ("bill", "--month", "2025-06", "--format", "focus", "--output")

    said = printed(*asked, str(tmp_path / "x.csv"))

    assert "1 charge of June 2025 written to" in said
    assert "Not included: 20.0 GiB without a price." in said
    document = json.loads(printed(*asked, str(tmp_path / "x.csv"), "--json"))
    assert (document["rows"], document["bill"]["amount"]) == (1, "2.00")
    assert "x.html' must end in .csv." in capacity(*asked, str(tmp_path / "x.html")).output
    assert "needs a file" in capacity("bill", "--month", "2025-06", "--format", "focus", "--json").output


@pytest.mark.skipif(not VALIDATOR.exists(), reason="the official validator is not installed: make test-focus")
def test_the_official_validator_accepts_the_charges(engine: Engine, tmp_path: Path) -> None:
    bill_with_two_versions(engine)
    rows = [
        {NAMES_OF_VALIDATOR.get(name, name): value for name, value in row.items()}
        | {"ChargeType": row["ChargeCategory"]}
        for row in charges()
    ]

    def said_of(rows: list[dict[str, str]]) -> str:
        path = tmp_path / "charges.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        # It finds its list of currencies from the folder that holds its package.
        [packages] = VALIDATOR.parents[1].glob("lib/python*/site-packages")
        command = [VALIDATOR, "--data-file", path, "--validate-version", "1.0"]
        return subprocess.run(command, cwd=packages, capture_output=True, text=True, timeout=120, check=True).stdout

    assert said_of(rows) == "Validation succeeded.\n"
    assert "BillingCurrency_IsCurrencyCode failed" in said_of([row | {"BillingCurrency": "Euro"} for row in rows])
