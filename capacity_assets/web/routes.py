"""The pages: their addresses, titles, parameters and files; and the meaning and form of each parameter."""

from __future__ import annotations

from collections.abc import Mapping

from capacity_assets.aggregates.groups import ENGINE
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.reading.lists import NAME_KINDS, ORDERS, SERVER_ORDERS
from capacity_assets.reading.table_growth import ORDERS as TABLE_ORDERS
from capacity_assets.web.bills import read_bill_page, read_budget_page
from capacity_assets.web.changes import read_changes
from capacity_assets.web.fleet import read_fleet
from capacity_assets.web.forecasts import (
    ASSUMPTION_PARAMETERS,
    EVERY,
    OPEN,
    RULES_OF_ASSUMPTIONS,
    read_accuracy,
    read_decisions_page,
    read_filling,
    read_scenario,
)
from capacity_assets.web.groups import GROUP_ORDERS, read_group, read_groups
from capacity_assets.web.reader import (
    DATE,
    LABEL_TEXT,
    MONTH_OR_DAY,
    MOST_PAGES,
    RANGE_NAMES,
    RANGES,
    ROWS_PER_PAGE,
    TEXT,
)
from capacity_assets.web.rendering import FileList, PageRoute
from capacity_assets.web.subjects import (
    read_database,
    read_databases,
    read_search,
    read_server,
    read_servers,
    read_table,
    read_tables,
    read_volume,
)


def _number(most: int) -> Mapping[str, object]:
    return {"type": "integer", "minimum": 1, "maximum": most}


PARAMETERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "period": ("Length of the windows.", {"enum": list(PERIODS)}),
    "window": ("Any day of the window; by default, the last complete one.", DATE),
    "order": ("Order of the list.", {"type": "string"}),
    "engine": ("Only this engine, such as postgresql.", TEXT),
    "label": ("Only this label, such as team=payments; team=: those without it.", LABEL_TEXT),
    "page": ("Part of a long list, from 1; has_more: there is a next one.", _number(MOST_PAGES)),
    "by": ("Grouping: engine, server, or a label key such as team.", {"type": "string"}),
    "name": ("Name of the database, volume, table, group or scenario.", TEXT),
    "database": ("Name of the database in which the table is.", TEXT),
    "schema": ("Schema of the table; none where the engine has none within a database.", TEXT),
    "server": ("ID of the server, server_id in other answers; the search finds it by name.", _number(2**31 - 1)),
    "month": ("The month, by any of its days or as 2026-03.", MONTH_OR_DAY),
    "issue": ("Version of the bill; by default, the newest.", _number(10_000)),
    "q": ("Words that are in the name, in any order.", TEXT),
    "kind": ("Only names of this kind.", {"enum": list(NAME_KINDS)}),
    "shown": ("Maximum number of names.", _number(ROWS_PER_PAGE)),
    "range": ("Days of the sizes, up to the newest.", {"enum": list(RANGES)}),
    "first": ("First day of the sizes. If it is after `last`, the two are swapped.", DATE),
    "last": ("Last day of the sizes.", DATE),
    "compare": ("Whether to return the sizes of the year before, too.", {"enum": ["year"]}),
    "state": ("Whether to list decisions that are past or closed, too.", {"type": "string"}),
    "horizon": ("Days ahead of the forecasts that are judged.", {"enum": list(HORIZONS_DAYS)}),
    "months": ("Number of months.", _number(12)),
    **ASSUMPTION_PARAMETERS,
}
"""The parameters of all pages with their meaning and JSON schema."""

GROUPINGS_OF_BUDGETS = (ENGINE,)
BILL_COLUMNS = ("month", "currency", "issue", "is_final", "grouped_by")
WINDOW_COLUMNS = ("period", "window_start", "window_end")
BUDGET_COLUMNS = ("as_of", "last_day", "currency", "grouped_by")
SERVER_COLUMNS = ("server.server_id", "server.server")
PAGES = (
    PageRoute(
        *("/", "Fleet", read_fleet, "sizes"),
        "Size and growth of the fleet, what fills first, what changed, and which servers were not measured.",
        ("period", *RANGE_NAMES),
        in_menu=True,
        beside=("period",),
        has_figures=True,
    ),
    PageRoute(
        *("/changes", "Changes", read_changes, "changed"),
        "Changes in a window: sizes by group, databases that grew, shrank, came or went, fill dates, decisions, gaps.",
        ("period", "window", "by", "page"),
        in_menu=True,
        beside=WINDOW_COLUMNS,
        has_figures=True,
    ),
    PageRoute(
        *("/servers", "Servers", read_servers, "servers"),
        "Servers of a window: size and change, how much of the limit is used, and when it is full.",
        ("period", "window", "order", "engine", "page"),
        {"order": list(SERVER_ORDERS)},
        in_menu=True,
        beside=WINDOW_COLUMNS,
        has_figures=True,
    ),
    PageRoute(
        *("/databases", "Databases", read_databases, "databases"),
        "Databases of a window, the largest or the fastest growing first, with the limit that binds and when it is "
        "full.",
        ("period", "window", "order", "engine", "label", "page"),
        {"order": list(ORDERS)},
        in_menu=True,
        beside=WINDOW_COLUMNS,
        has_figures=True,
    ),
    PageRoute(
        *("/groups", "Groups", read_groups, "groups"),
        "Groups such as teams in a window: size, share and change, which add up to the fleet, and what fills first.",
        ("by", "period", "window", "order", "page"),
        {"order": list(GROUP_ORDERS)},
        in_menu=True,
        beside=(*WINDOW_COLUMNS, "grouped_by"),
    ),
    PageRoute(
        *("/filling", "Fills first", read_filling, "runways"),
        "What is full within a year, earliest first, with dates and probabilities.",
        ("page",),
        in_menu=True,
    ),
    PageRoute(
        *("/bill", "Bill", read_bill_page, "groups"),
        "What the databases of a month cost, by group, with what changed since the month before.",
        ("by", "month", "issue", "page"),
        above=("/",),
        in_menu=True,
        beside=BILL_COLUMNS,
    ),
    PageRoute(
        *("/accuracy", "Accuracy", read_accuracy, "months"),
        "How far forecasts were off, and whether their probabilities held, by horizon.",
        ("horizon",),
        in_menu=True,
    ),
    PageRoute(
        *("/budget", "Budget", read_budget_page, "lines"),
        "What groups will have and cost in the coming months, with ranges.",
        ("by", "months"),
        above=("/", "/bill"),
        in_menu=True,
        groupings=GROUPINGS_OF_BUDGETS,
        beside=BUDGET_COLUMNS,
    ),
    PageRoute(
        *("/decisions", "Decisions", read_decisions_page, "decisions"),
        "Decisions on what may fill: who decided what, until when, and the risk then and now.",
        ("server", "state", "page"),
        {"state": [OPEN, EVERY]},
        above=("/", "/filling"),
        in_menu=True,
    ),
    PageRoute(
        *("/scenario", "What if", read_scenario, "runways"),
        "How assumptions change fill dates and budget, where a new database fits, and stored scenarios.",
        ("name", "by", *ASSUMPTION_PARAMETERS),
        above=("/", "/filling"),
        in_menu=True,
        also="scenario",
        groupings=GROUPINGS_OF_BUDGETS,
        rules=RULES_OF_ASSUMPTIONS,
        other_lists={"budget": FileList("result.budget", ("result.grouped_by", "result.last_day", "result.currency"))},
    ),
    PageRoute(
        *("/tables", "Tables", read_tables, "tables"),
        "Tables and indexes of a window: what grew or shrank most, is largest, or has dead space, with its cost.",
        ("period", "window", "order", "engine", "label", "server", "page"),
        {"order": list(TABLE_ORDERS)},
        above=("/",),
        in_search=True,
    ),
    PageRoute(
        *("/server", "Server", read_server, "sizes"),
        "A server: sizes over time, forecast, volumes, what fills it, its databases and its last measurements.",
        ("server", "period", *RANGE_NAMES, "window", "order", "page"),
        {"order": list(ORDERS)},
        needed=("server",),
        above=("/", "/servers"),
        beside=(*SERVER_COLUMNS, "period"),
        has_figures=True,
    ),
    PageRoute(
        *("/database", "Database", read_database, "sizes"),
        "A database: sizes over time, forecast and limit, declared steps, and what grew inside.",
        ("server", "name", "period", *RANGE_NAMES, "window"),
        needed=("server", "name"),
        above=("/", "/servers", "/server"),
        beside=(*SERVER_COLUMNS, "database", "period"),
        has_figures=True,
    ),
    PageRoute(
        *("/table", "Table", read_table, "sizes"),
        "A table: data, dead and free space and indexes by measured day, growth in a week, and cost.",
        ("server", "database", "schema", "name", "range", "first", "last"),
        needed=("server", "database", "name"),
        above=("/", "/servers", "/server", "/database"),
        beside=(*SERVER_COLUMNS, "database", "schema", "table"),
    ),
    PageRoute(
        *("/volume", "Volume", read_volume, "sizes"),
        "A volume of a server: use by day, forecast, what fills it, and the databases on it.",
        ("server", "name", *RANGE_NAMES),
        needed=("server", "name"),
        above=("/", "/servers", "/server"),
        beside=(*SERVER_COLUMNS, "volume.volume"),
    ),
    PageRoute(
        *("/group", "Group", read_group, "sizes"),
        "A group such as a team: sizes over time, cost, what fills first, and what grew most in it.",
        ("by", "name", "period", *RANGE_NAMES, "window"),
        beside=("period", "grouped_by", "name"),
        above=("/", "/groups"),
    ),
    PageRoute(
        *("/search", "Search", read_search, "found"),
        "Servers, databases, volumes, groups and tables by words of their names; those that fill first come first.",
        ("q", "kind", "shown"),
        is_cached=False,
    ),
)
PAGE_OF = {page.path: page for page in PAGES}
