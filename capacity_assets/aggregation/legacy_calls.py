"""The calls of the replaced system, under its names: a part of `AggregationService`, kept apart so that it can go.

Each goes through `aggregate`, with the same checks and the same lock as everything else. The task functions of the
replaced system are in `capacity_assets.tasks`. Besides the methods below there are, for each registered period,
`calculate_<period>_aggregations`, `calculate_<period>_instance_aggregations`,
`calculate_<period>_database_aggregations_for_instance` and `calculate_<period>_aggregations_for_instance`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partialmethod

from capacity_assets.aggregation.options import SCOPE_ALL, RunOptions
from capacity_assets.aggregation.partition_range import PartitionRange
from capacity_assets.aggregation.results import InstanceSummary, RunSummary
from capacity_assets.aggregation.work import InstanceRef
from capacity_assets.clock import Clock
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.periods import PERIODS, Period, Window


class LegacyCalls:
    """What callers of the replaced system find on `AggregationService`; the attributes are the service's."""

    clock: Clock
    periods: Mapping[str, Period]
    partitions: PartitionRange
    aggregate: Callable[..., RunSummary]
    period: Callable[[str | Period], Period]
    levels_of: Callable[[str], tuple[str, ...]]
    instance: Callable[[int], InstanceRef]

    def calculate_period_aggregations(
        self, period_type: str, start_date: date, end_date: date, *, scope: str = SCOPE_ALL, overwrite: bool = False
    ) -> RunSummary:
        """Compute every window of the period that holds a day from `start_date` to `end_date`.

        Raises: as `aggregate`; also ValidationError when the dates are in the wrong order.
        """
        try:
            windows = self.period(period_type).windows_between(start_date, end_date)
        except ValueError as error:
            raise ValidationError(f"{error}. Nothing was written.") from error
        return self.aggregate(period_type, windows, RunOptions(self.levels_of(scope), overwrite=overwrite))

    def aggregate_current_period(self, period_type: str = "daily", *, scope: str = SCOPE_ALL) -> RunSummary:
        """Compute the window that holds today; `scope` is a level or all."""
        return self.calculate_scheduled_aggregations(period_type, scope=scope, use_current_period=True)

    def calculate_scheduled_aggregations(
        self, period_type: str, *, scope: str = SCOPE_ALL, use_current_period: bool | None = None
    ) -> RunSummary:
        """Compute the scheduled window (current for daily, last for the rest), or the one `use_current_period` says."""
        window = self._due_window(self.period(period_type), use_current_period)
        return self.aggregate(period_type, [window], RunOptions(self.levels_of(scope)))

    def calculate_aggregations_for_instance(
        self, period_type: str, instance_id: int, *, scope: str = SCOPE_ALL, use_current_period: bool | None = None
    ) -> RunSummary:
        """Do the same for one instance; raises NotFoundError where the id is not registered."""
        window = self._due_window(self.period(period_type), use_current_period)
        return self.aggregate(period_type, [window], RunOptions(self.levels_of(scope), [self.instance(instance_id).id]))

    def calculate_instance_aggregations(
        self, instance_id: int, periods: Sequence[str] | None = None, *, scope: str = SCOPE_ALL
    ) -> InstanceSummary:
        """Compute the scheduled window of each period for one instance; an inactive one is skipped.

        A window before the first partition is left out.

        Raises:
            NotFoundError: the id is not registered.
            ValidationError: an unknown period or scope; nothing was written.
        """
        instance, levels = self.instance(instance_id), self.levels_of(scope)
        chosen = [self.period(name) for name in (self.periods if periods is None else periods)]
        run = RunSummary()
        for period in chosen:
            window = self._due_window(period, None)
            if not self.partitions.is_before(period, window):
                run += self.aggregate(period, [window], RunOptions(levels, [instance.id]))
        return InstanceSummary(instance.id, instance.name, instance.active, run)

    def _due_window(self, period: Period, use_current: bool | None) -> Window:
        today = self.clock.today()
        if use_current is None:
            return period.scheduled(today)
        return period.current(today) if use_current else period.last(today)

    def build_period_summary(self, run: RunSummary) -> dict[str, object]:
        """Return what the task layer reports of one period: status, message, counts and each window."""
        return run.to_dict()


_NAMES = (
    ("calculate_{}_aggregations", LegacyCalls.calculate_scheduled_aggregations, DATABASE),
    ("calculate_{}_instance_aggregations", LegacyCalls.calculate_scheduled_aggregations, INSTANCE),
    ("calculate_{}_database_aggregations_for_instance", LegacyCalls.calculate_aggregations_for_instance, DATABASE),
    ("calculate_{}_aggregations_for_instance", LegacyCalls.calculate_aggregations_for_instance, INSTANCE),
)
for _period in PERIODS:
    for _name, _method, _level in _NAMES:
        setattr(LegacyCalls, _name.format(_period), partialmethod(_method, _period, scope=_level.name))
