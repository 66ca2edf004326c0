"""What scripts name when they speak of steps."""

from ezpyp.model.steps import Failed, Outcome, PlaceHolder, Status, Step, Steps, succeeded

__all__ = ["Failed", "Outcome", "PlaceHolder", "Status", "Step", "Steps", "succeeded"]
