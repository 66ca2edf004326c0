"""Everything ezpyp raises and warns. Each text names the step or place, says what is wrong, and ends with the remedy.

EzpypError
├── InitializationError         a call came at the wrong time, or the pipeline cannot be planned
│   ├── MissingDependency       a step depends on something that is not in its pipeline
│   └── CyclicDependency        steps that wait for each other
├── RepeatedStepError           the very same call, or the same name, twice
├── IdentityError               a value that would not be the same thing tomorrow
├── ArgumentChanged             a large array was changed between the call and the run
├── SchemaConflictError         the folder holds another plan
├── CacheInUse                  another run holds the folder
│   └── CacheTakenOver          another run took it from this one
├── ConfigurationError          a setting in a file or variable that is not known
├── SubmissionError             Slurm did not take a job, or cannot be asked
├── LauncherError               the launcher and the MPI library do not belong together
├── RankMismatch                ranks built different plans, or left while others ran
│   └── RankLost                no sign of life from another host
├── ResourceError               a step asks for what cannot be had
├── CodecError                  a result that its codec cannot write or read
├── CommandFailed               a program ended otherwise than it should
├── Interrupted                 a step was ended from outside, or ended itself, to be run again
├── StoreError                  something in the cache folder is torn, foreign or gone
├── ResultUnavailable           a result was asked for that is not there
│   ├── NotExecuted · ResultDropped · StepFailed · StepSkipped · UnknownStep
└── PipelineFailed              steps failed, and the caller asked for an exception

EzpypWarning
└── NotExecutedStepWarning · FailedStepWarning · SkippedStepWarning · UnrecognizedStepWarning
"""

from __future__ import annotations


class EzpypError(Exception):
    """Base of all errors of ezpyp. `exit_code` is how a script ends that does not catch it."""

    exit_code = 3
    #: True on ranks where the same error is raised as on rank 0, which shows it.
    quiet = False


class InitializationError(EzpypError):
    """A call came at the wrong time, or the steps do not make a pipeline."""


class MissingDependency(InitializationError):
    """A step depends on a step that its pipeline does not hold."""


class CyclicDependency(InitializationError):
    """Steps that wait for each other."""


class RepeatedStepError(EzpypError):
    """The very same call, or the same name, was added twice."""


class IdentityError(EzpypError):
    """A value whose identity would not be the same tomorrow or on another rank."""


class ArgumentChanged(EzpypError):
    """A large array was changed after the call that took it."""


class SchemaConflictError(EzpypError):
    """The cache folder holds another plan. Nothing was run and nothing was changed."""


class CacheInUse(EzpypError):
    """Another run holds the cache folder. Nothing was run and nothing was changed."""


class CacheTakenOver(CacheInUse):
    """Another run took the cache folder from this one, which then stopped."""

    exit_code = 4


class ConfigurationError(EzpypError):
    """A file or variable of settings says something that is not known, or not of its kind."""


class SubmissionError(EzpypError):
    """Slurm did not take a job, or cannot be asked."""


class LauncherError(EzpypError):
    """The launcher started several tasks and MPI sees only one."""


class RankMismatch(EzpypError):
    """The ranks of one run do not agree: another plan, or a rank that left."""

    exit_code = 4
    #: Seconds that a quiet rank leaves to the one that speaks before it ends the job.
    delay = 5.0


class RankLost(RankMismatch):
    """No sign of life came from the host of a rank for too long. `who` names the ranks."""

    def __init__(self, message: str, who: str = "") -> None:
        super().__init__(message)
        self.who = who


class ResourceError(EzpypError):
    """A step asks for something that this run does not have."""


class CodecError(EzpypError):
    """A codec cannot write this value, or cannot read these bytes."""

    exit_code = 1


class CommandFailed(EzpypError):
    """A program ended otherwise than it should: `cause` as in an Outcome, `tail` the end of what it wrote to stderr."""

    exit_code = 1

    def __init__(self, message: str, *, cause: str = "exit", tail: str = "") -> None:
        super().__init__(message)
        self.cause, self.tail = cause, tail


class Interrupted(EzpypError):
    """Raised in a step that is not done and did not fail: its status becomes -1, and the next run does it again."""

    exit_code = 85


class StoreError(EzpypError):
    """A file in the cache folder is torn, foreign or gone."""

    exit_code = 1


class ResultUnavailable(EzpypError):
    """Base of what `result()` raises when there is none."""

    exit_code = 1


class NotExecuted(ResultUnavailable):
    """The step has not run yet."""


class ResultDropped(ResultUnavailable):
    """The step is done, and its result was dropped because nothing needs it any more (`keep=False`)."""


class StepFailed(ResultUnavailable):
    """The step ran and failed."""


class StepSkipped(ResultUnavailable):
    """The step was skipped because a step before it failed."""


class UnknownStep(ResultUnavailable):
    """No step of that name is in the pipeline."""


class PipelineFailed(EzpypError):
    """Steps failed and `raise_on_failure=True` was asked for. `failures` maps each failed step to its reason."""

    exit_code = 1

    def __init__(self, message: str, failures: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or {}


class EzpypWarning(UserWarning):
    """Base of all warnings of ezpyp."""


class NotExecutedStepWarning(EzpypWarning):
    """A result was asked for of a step that has not run."""


class FailedStepWarning(EzpypWarning):
    """A result was asked for of a step that failed."""


class SkippedStepWarning(EzpypWarning):
    """A result was asked for of a step that was skipped."""


class UnrecognizedStepWarning(EzpypWarning):
    """A result was asked for under a name that no step has."""
