"""ezpyp: decorated Python functions as steps, in phases, across MPI ranks, with every result kept on disk."""

import os
import typing

from ezpyp.errors import (
    ArgumentChanged,
    CacheInUse,
    CacheTakenOver,
    CodecError,
    CommandFailed,
    CyclicDependency,
    EzpypError,
    EzpypWarning,
    FailedStepWarning,
    IdentityError,
    InitializationError,
    Interrupted,
    LauncherError,
    MissingDependency,
    NotExecuted,
    NotExecutedStepWarning,
    PipelineFailed,
    RankMismatch,
    RepeatedStepError,
    ResourceError,
    ResultDropped,
    ResultUnavailable,
    SchemaConflictError,
    SkippedStepWarning,
    StepFailed,
    StepSkipped,
    StoreError,
    UnknownStep,
    UnrecognizedStepWarning,
)
from ezpyp.front.pipeline import (
    Pipeline,
    as_cloudpickle_step,
    as_command_step,
    as_dill_step,
    as_json_step,
    as_numpy_step,
    as_parquet_step,
    as_pickle_step,
)
from ezpyp.identity.fingerprint import register_identity
from ezpyp.identity.inputs import File, Files, Tree
from ezpyp.model.outcomes import Failed, Outcome, Status, succeeded
from ezpyp.model.policy import Retry
from ezpyp.model.scratch import workdir
from ezpyp.model.steps import PlaceHolder, Step, Steps
from ezpyp.system.stopping import stopping, time_left
from ezpyp.work.checkpoints import checkpoint_dir
from ezpyp.work.preloading import preload
from ezpyp.work.seeding import current as seed

if typing.TYPE_CHECKING:
    from ezpyp.folder.runs import Run, open
    from ezpyp.folder.summary import Summary
    from ezpyp.programs.command import Completed
    from ezpyp.programs.words import Output

__version__ = "0.1.0"

# `torch.cuda.is_available()` at the top of a script shall not start CUDA, which the processes forked later cannot use.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

__all__ = [
    "ArgumentChanged",
    "CacheInUse",
    "CacheTakenOver",
    "CodecError",
    "CommandFailed",
    "Completed",
    "CyclicDependency",
    "EzpypError",
    "EzpypWarning",
    "Failed",
    "FailedStepWarning",
    "File",
    "Files",
    "IdentityError",
    "InitializationError",
    "Interrupted",
    "LauncherError",
    "MissingDependency",
    "NotExecuted",
    "NotExecutedStepWarning",
    "Outcome",
    "Output",
    "Pipeline",
    "PipelineFailed",
    "PlaceHolder",
    "RankMismatch",
    "RepeatedStepError",
    "ResourceError",
    "ResultDropped",
    "ResultUnavailable",
    "Retry",
    "Run",
    "SchemaConflictError",
    "SkippedStepWarning",
    "Status",
    "Step",
    "StepFailed",
    "StepSkipped",
    "Steps",
    "StoreError",
    "Summary",
    "Tree",
    "UnknownStep",
    "UnrecognizedStepWarning",
    "as_cloudpickle_step",
    "as_command_step",
    "as_dill_step",
    "as_json_step",
    "as_numpy_step",
    "as_parquet_step",
    "as_pickle_step",
    "checkpoint_dir",
    "open",
    "preload",
    "register_identity",
    "seed",
    "stopping",
    "succeeded",
    "time_left",
    "workdir",
]


#: What enters when it is first named: ten thousand ranks import ezpyp, and few of them ask for these.
_LATE = {
    "Completed": "ezpyp.programs.command",
    "Output": "ezpyp.programs.words",
    "Run": "ezpyp.folder.runs",
    "Summary": "ezpyp.folder.summary",
    "open": "ezpyp.folder.runs",
}


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module 'ezpyp' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
