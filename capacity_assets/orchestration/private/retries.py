"""When steps of runs are retried: Dagster asks a policy while it handles the failure, the interruption included."""

import sys

import dagster as dg


class RunRetryPolicy(dg.RetryPolicy):
    """Retries steps, except those of a run that is being terminated; Dagster itself would retry these, too."""

    def calculate_delay(self, attempt_num: int) -> float:
        """Return the seconds before the next attempt; raises the interruption that ends a terminated run."""
        handled = sys.exc_info()[1]
        if isinstance(handled, dg.DagsterExecutionInterruptedError | KeyboardInterrupt) and self.is_being_terminated():
            raise handled
        return super().calculate_delay(attempt_num)

    def is_being_terminated(self) -> bool:
        """Whether the run at work is being terminated. An interrupted one may also be on a machine that goes down."""
        context = dg.OpExecutionContext.get()
        run = context.instance.get_run_by_id(context.run_id)
        return run is not None and run.status is dg.DagsterRunStatus.CANCELING
