"""Properties that are tried with the same examples in every run."""

from typing import Final

from hypothesis import HealthCheck, settings

REPEATABLE: Final = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
"""The examples follow from the test's own code, so a failure is there again the next time. Time is
no measure on a machine that does other things too. More examples: `settings(REPEATABLE, …)`."""
