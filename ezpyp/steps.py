"""What scripts name when they speak of steps."""

from ezpyp.model.outcomes import Failed, Outcome, Status, succeeded
from ezpyp.model.steps import PlaceHolder, Step, Steps

__all__ = ["Failed", "Outcome", "PlaceHolder", "Status", "Step", "Steps", "succeeded"]
