"""What reads the tables of the graph, as external assets at the end of the lineage: the views, and the pages.

Nothing materialises them: a view has what its tables have. What a view reads is found in its query.
"""

import re
from collections.abc import Iterator, Mapping

import dagster as dg

from capacity_assets.aggregates.levels import LEVELS, RAW_TABLES
from capacity_assets.database.tables import capacity_bill_lines, capacity_runways
from capacity_assets.database.views import VIEWS
from capacity_assets.orchestration.documents import REPORT_PERIOD, SHOWBACK
from capacity_assets.orchestration.graph import Graph, asset_name
from capacity_assets.orchestration.runways import RUNWAY

VIEW_GROUP, PAGES_GROUP, PAGES = "views", "pages", "pages"
PAGES_DESCRIPTION = "The pages of the fleet, its groups, servers, databases and disks, as `capacity serve` shows them."


def reader_definitions(graph: Graph) -> dg.Definitions:
    """Return the views that read a table of the graph, and the pages, which read them all."""
    views = {view.name: view for view in VIEWS}
    sources = _sources(graph)

    def read_by(name: str) -> Iterator[str]:
        """Yield the assets that a view reads, through other views too, which are assets of their own."""
        for word in dict.fromkeys(re.findall(r"\w+", views[name].query)):
            if word in sources:
                yield from sources[word]
            elif word in views and word != name and any(read_by(word)):
                yield word

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
        if (deps := list(read_by(name)))
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
    """Return the assets by the table in which their rows lie."""
    aggregates = {
        level.target.name: [asset_name(period, level) for period in graph.periods.values()] for level in LEVELS.values()
    }
    bills = {capacity_bill_lines.name: [SHOWBACK]} if REPORT_PERIOD in graph.periods else {}
    return {**{raw.name: [raw.name] for raw in RAW_TABLES}, **aggregates, capacity_runways.name: [RUNWAY], **bills}
