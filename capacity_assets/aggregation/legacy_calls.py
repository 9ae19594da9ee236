"""The calls of the replaced system, under its names: a part of `AggregationService`, kept apart so that it can go.

Each goes through `aggregate`, with the same checks and the same lock as everything else. The task functions of the
replaced system are in `capacity_assets.tasks`. Besides the methods below there are, for each registered period,
`calculate_<period>_aggregations`, `calculate_<period>_instance_aggregations`,
`calculate_<period>_database_aggregations_for_instance` and `calculate_<period>_aggregations_for_instance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partialmethod

from capacity_assets.aggregation.options import DEFAULT_OPTIONS, SCOPE_ALL, RunOptions
from capacity_assets.aggregation.results import InstanceSummary, RunSummary
from capacity_assets.aggregation.runners import InstanceRef
from capacity_assets.clock import Clock
from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.periods import PERIODS, Period, Window


class LegacyCalls(ABC):
    """What callers of the replaced system find on `AggregationService`; the abstract methods are the service's."""

    clock: Clock
    periods: Mapping[str, Period]

    @abstractmethod
    def aggregate(
        self, period: str | Period, windows: Iterable[Window], options: RunOptions = DEFAULT_OPTIONS
    ) -> RunSummary:
        """Compute windows."""

    @abstractmethod
    def period(self, period: str | Period) -> Period:
        """Look a period up by name."""

    @abstractmethod
    def levels_of(self, scope: str) -> tuple[str, ...]:
        """Translate a scope into levels."""

    @abstractmethod
    def instance(self, instance_id: int) -> InstanceRef:
        """Look an instance up by id."""

    def aggregate_current_period(self, period_type: str = "daily", *, scope: str = SCOPE_ALL) -> RunSummary:
        """Compute the window that holds today; `scope` is database, instance or all."""
        return self.calculate_scheduled_aggregations(period_type, scope=scope, use_current_period=True)

    def calculate_scheduled_aggregations(
        self,
        period_type: str,
        instance_id: int | None = None,
        *,
        scope: str = SCOPE_ALL,
        use_current_period: bool | None = None,
    ) -> RunSummary:
        """Compute the scheduled window (current for daily, last for the rest), or the one `use_current_period` says.

        Raises:
            NotFoundError: the id is not registered.
        """
        period, today = self.period(period_type), self.clock.today()
        if use_current_period is None:
            window = period.scheduled(today)
        else:
            window = period.current(today) if use_current_period else period.last(today)
        only = None if instance_id is None else [instance_id]
        return self.aggregate(period, [window], RunOptions(self.levels_of(scope), instance_ids=only))

    def calculate_instance_aggregations(
        self, instance_id: int, periods: Sequence[str] | None = None, *, scope: str = SCOPE_ALL
    ) -> InstanceSummary:
        """Compute the scheduled window of each period for one instance; an inactive one is skipped.

        Raises:
            NotFoundError: the id is not registered.
        """
        instance = self.instance(instance_id)
        run = RunSummary()
        for name in self.periods if periods is None else periods:
            run += self.calculate_scheduled_aggregations(name, instance_id, scope=scope)
        return InstanceSummary(instance.id, instance.name, instance.active, run)

    def build_period_summary(self, run: RunSummary) -> dict[str, object]:
        """Return what the task layer reports of one period: status, message, counts and each window."""
        return run.to_dict()


# Those for one instance take its id as their first argument.
_NAMES = {
    "calculate_{}_aggregations": DATABASE,
    "calculate_{}_instance_aggregations": INSTANCE,
    "calculate_{}_database_aggregations_for_instance": DATABASE,
    "calculate_{}_aggregations_for_instance": INSTANCE,
}
for _period in PERIODS:
    for _name, _level in _NAMES.items():
        _call = partialmethod(LegacyCalls.calculate_scheduled_aggregations, _period, scope=_level.name)
        setattr(LegacyCalls, _name.format(_period), _call)
