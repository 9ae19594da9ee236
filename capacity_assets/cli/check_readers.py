"""What `capacity check` says of the pages and the digest: with which role, and to whom."""

from __future__ import annotations

from collections.abc import Iterator

from capacity_assets.cli.findings import Finding, Verdict
from capacity_assets.digest.receivers import receivers_of
from capacity_assets.foundation.errors import CapacityError
from capacity_assets.runtime import open_reading_engine
from capacity_assets.settings import Settings
from capacity_assets.storage.engine import UnreachableError

PAGES = "pages"
DIGEST = "CAPACITY_DIGEST_RECEIVERS"


def digest_findings(settings: Settings) -> Iterator[Finding]:
    """Look at the file of receivers, and whether there is a way to reach them."""
    if settings.digest_receivers is None:
        return
    try:
        receivers = receivers_of(settings.digest_receivers, settings.label_keys)
    except CapacityError as error:
        yield Finding(DIGEST, Verdict.BAD, " ".join(str(error).splitlines()))
        return
    yield Finding(DIGEST, Verdict.OK, ", ".join(receiver.name for receiver in receivers) or "nobody")
    if any(receiver.to for receiver in receivers) and (settings.smtp_url is None or settings.mail_from is None):
        yield Finding(DIGEST, Verdict.BAD, "mail needs CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM too")
    if any(receiver.webhook for receiver in receivers) and settings.alert_webhook_url is None:
        yield Finding(DIGEST, Verdict.BAD, "webhook = true needs CAPACITY_ALERT_WEBHOOK_URL too")


def pages_findings(settings: Settings) -> Iterator[Finding]:
    """Look whether the pages could be served with a role that only reads, where the server is one's own."""
    if settings.capacity_url is None and settings.web_database_url is None:
        return
    try:
        with open_reading_engine(settings):
            yield Finding(PAGES, Verdict.OK, "served with a role that only reads")
    except UnreachableError as error:
        yield Finding(PAGES, Verdict.BAD, str(error))
    except CapacityError as error:
        yield Finding(PAGES, Verdict.NOTE, str(error))
