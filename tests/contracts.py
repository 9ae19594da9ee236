"""What receivers of messages take, as their documentation has it; unknown keys are refused, lengths are limits.

Slack: docs.slack.dev, "Sending messages using incoming webhooks" and the reference of blocks. Microsoft Teams: "Create
incoming webhooks with Workflows" (28 KB per message) and adaptivecards.io, version 1.4. PagerDuty: "Send an alert
event", Events API v2, answered with 202.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class SlackText(Contract):
    type: Literal["plain_text", "mrkdwn"]
    text: str = Field(min_length=1, max_length=3_000)


class SlackHeaderText(Contract):
    type: Literal["plain_text"]
    text: str = Field(min_length=1, max_length=150)


class SlackHeader(Contract):
    type: Literal["header"]
    text: SlackHeaderText


class SlackSection(Contract):
    type: Literal["section"]
    text: SlackText


class SlackMessage(Contract):
    text: str = Field(min_length=1, max_length=40_000)
    blocks: list[Annotated[SlackHeader | SlackSection, Field(discriminator="type")]] = Field(max_length=50)


class TextBlock(Contract):
    type: Literal["TextBlock"]
    text: str
    wrap: bool = False
    size: Literal["Default", "Small", "Medium", "Large", "ExtraLarge"] = "Default"
    weight: Literal["Default", "Lighter", "Bolder"] = "Default"
    style: Literal["default", "heading"] = "default"
    separator: bool = False
    fontType: Literal["Default", "Monospace"] = "Default"  # noqa: N815 -- the schema's name


class Fact(Contract):
    title: str
    value: str


class FactSet(Contract):
    type: Literal["FactSet"]
    facts: list[Fact] = Field(min_length=1)


class OpenUrl(Contract):
    type: Literal["Action.OpenUrl"]
    title: str
    url: str


class AdaptiveCard(Contract):
    schema_address: Literal["http://adaptivecards.io/schemas/adaptive-card.json"] = Field(alias="$schema")
    type: Literal["AdaptiveCard"]
    version: Literal["1.4"]
    msteams: dict[Literal["width"], Literal["Full"]]
    body: list[Annotated[TextBlock | FactSet, Field(discriminator="type")]] = Field(min_length=1)
    actions: list[OpenUrl] = []


class TeamsAttachment(Contract):
    content_type: Literal["application/vnd.microsoft.card.adaptive"] = Field(alias="contentType")
    content_url: None = Field(alias="contentUrl")
    content: AdaptiveCard


class TeamsMessage(Contract):
    type: Literal["message"]
    attachments: list[TeamsAttachment] = Field(min_length=1, max_length=1)


class PagerDutyLink(Contract):
    href: str
    text: str


class PagerDutyPayload(Contract):
    summary: str = Field(max_length=1_024)
    source: str = Field(min_length=1)
    severity: Literal["critical", "error", "warning", "info"]
    timestamp: str | None = None
    component: str | None = None
    group: str | None = None
    class_: str | None = Field(default=None, alias="class")
    custom_details: dict[str, Any] = {}


class PagerDutyTrigger(Contract):
    routing_key: str = Field(min_length=32, max_length=32)
    event_action: Literal["trigger"]
    dedup_key: str = Field(max_length=255)
    payload: PagerDutyPayload
    client: str | None = None
    client_url: str | None = None
    links: list[PagerDutyLink] = []


class PagerDutyResolve(Contract):
    routing_key: str = Field(min_length=32, max_length=32)
    event_action: Literal["resolve"]
    dedup_key: str = Field(max_length=255)


PagerDutyEvent: TypeAdapter[PagerDutyTrigger | PagerDutyResolve] = TypeAdapter(
    Annotated[PagerDutyTrigger | PagerDutyResolve, Field(discriminator="event_action")]
)
TEAMS_BYTES = 28 * 1024
