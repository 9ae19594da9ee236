"""Puts the code location together. Tests, the command line and production share this one assembly.

Parts are passed in, never patched: other settings, another period registry, a fixed clock. The views and the pages,
which read the tables of the graph, are external assets at the end of the lineage: nothing materialises them. The tables
that a view reads are found in its query.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import dagster as dg

from capacity_assets.aggregates.levels import LEVELS, RAW_TABLES
from capacity_assets.base.periods import PERIODS, Clock, Period, with_trend_threshold
from capacity_assets.base.settings import Settings
from capacity_assets.database.sql import View
from capacity_assets.database.tables import capacity_bill_lines, capacity_runways
from capacity_assets.database.views import VIEWS
from capacity_assets.history.retention import parse_retention
from capacity_assets.orchestration.aggregates import aggregate_definitions, maintenance_definitions
from capacity_assets.orchestration.alerts import alert_definitions
from capacity_assets.orchestration.collection import collection_definitions
from capacity_assets.orchestration.documents import REPORT_PERIOD, SHOWBACK, document_definitions
from capacity_assets.orchestration.graph import OWNERS, RETRIES, SERVICES, Graph, asset_name
from capacity_assets.orchestration.runways import RUNWAY, runway_definitions
from capacity_assets.runtime import excluded_databases_of

VIEW_GROUP, PAGES_GROUP, PAGES = "views", "pages", "pages"
PAGES_DESCRIPTION = "The pages of the fleet, its groups, servers, databases and disks, as `capacity serve` shows them."


def _read_by(view: View, views: Mapping[str, View], sources: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the assets that a view reads, also through other views, which are assets too."""
    for word in dict.fromkeys(re.findall(r"\w+", view.query)):
        if word in sources:
            yield from sources[word]
        elif word in views and word != view.name and any(_read_by(views[word], views, sources)):
            yield word


def consumer_definitions(graph: Graph) -> dg.Definitions:
    """Return the views that read a table of the graph, and the pages, which read them all."""
    views = {view.name: view for view in VIEWS}
    sources = _sources(graph)
    specs = [
        dg.AssetSpec(
            graph.key(name),
            deps=[graph.key(dep) for dep in deps],
            description=view.comment,
            group_name=VIEW_GROUP,
            owners=graph.owners,
            kinds={"postgres", "view"},
            metadata={
                "dagster/table_name": name,
                "dagster/column_schema": dg.TableSchema(
                    columns=[dg.TableColumn(column.name, description=column.comment) for column in view.columns]
                ),
            },
        )
        for name, view in views.items()
        if (deps := list(_read_by(view, views, sources)))
    ]
    pages = dg.AssetSpec(
        graph.key(PAGES),
        deps=[graph.key(asset) for assets in sources.values() for asset in assets],
        description=PAGES_DESCRIPTION,
        group_name=PAGES_GROUP,
        owners=graph.owners,
        kinds={"html"},
        metadata={"url": dg.MetadataValue.url(graph.settings.pages_url)} if graph.settings.pages_url else {},
    )
    return dg.Definitions(assets=[*specs, pages])


def _sources(graph: Graph) -> Mapping[str, list[str]]:
    aggregates = {
        level.target.name: [asset_name(period, level) for period in graph.periods.values()] for level in LEVELS.values()
    }
    bills = {capacity_bill_lines.name: [SHOWBACK]} if REPORT_PERIOD in graph.periods else {}
    return {**{raw.name: [raw.name] for raw in RAW_TABLES}, **aggregates, capacity_runways.name: [RUNWAY], **bills}


SUBJECTS = (
    collection_definitions,
    aggregate_definitions,
    runway_definitions,
    maintenance_definitions,
    document_definitions,
    consumer_definitions,
    alert_definitions,
)


def released_source() -> str | None:
    """Return the address of the sources of this release, which its workflow notes in the package; None: none."""
    urls = metadata("capacity_assets").get_all("Project-URL") or ()
    return next((url.partition(", ")[2] for url in urls if url.startswith("Source, ")), None)


def _with_source(assets: list[Any]) -> Sequence[Any]:
    """Add the line of its function to the page of each asset: in a release at its tag, otherwise on this machine."""
    assets, source = list(dg.with_source_code_references(assets)), released_source()
    if source is None:
        return assets
    url, _, tag = source.rpartition("/tree/")
    paths = dg.AnchorBasedFilePathMapping(Path(__file__).parents[1], "capacity_assets")
    return dg.link_code_references_to_git(assets, url, tag, paths, platform="github")


def build_definitions(  # noqa: PLR0913 -- the options of the graph
    settings: Settings,
    *,
    periods: Mapping[str, Period] = PERIODS,
    clock: Clock | None = None,
    retries: dg.RetryPolicy = RETRIES,
    executor: dg.ExecutorDefinition | None = None,
    key_prefix: str | Sequence[str] | None = None,
    owners: Sequence[str] | None = None,
    fleet: Path | None = None,
) -> dg.Definitions:
    """Build the definitions of the graph; a code location may have other definitions, too.

    `executor` is that of the jobs, by default in one process; runs without a job, for example from the page of an
    asset, have the executor of the code location. `key_prefix` is the prefix of the key of each asset. `fleet` is a
    file of servers. Nothing is opened here: the database is reached when a run starts.

    Raises ConfigurationError: CAPACITY_RETENTION_DAYS or CAPACITY_SYSTEM_DATABASES names something that does not exist.
    """
    periods = with_trend_threshold(periods, settings.trend_percent)
    parse_retention(settings.retention_days, periods)
    excluded_databases_of(settings)
    graph = Graph(
        settings,
        clock or Clock(settings.zone),
        periods,
        retries,
        executor=executor or dg.in_process_executor,
        prefix=(key_prefix,) if isinstance(key_prefix, str) else tuple(key_prefix or ()),
        owners=list(OWNERS if owners is None else owners),
        fleet=fleet,
    )
    with warnings.catch_warnings():
        # Backfill policies, lenient partition mappings and code references are beta, partitions of checks a preview;
        # the pinned release bounds that.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        parts = [definitions_of(graph) for definitions_of in SUBJECTS]
        merged = dg.Definitions.merge(*parts)
        assets = _with_source(list(merged.assets or ()))
    return dg.Definitions(
        assets=assets,
        asset_checks=merged.asset_checks,
        jobs=merged.jobs,
        schedules=merged.schedules,
        sensors=merged.sensors,
        resources={SERVICES: graph.services()},
    )
