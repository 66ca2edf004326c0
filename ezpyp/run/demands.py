"""What steps ask for, held against what the nodes have and what the script did: refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ezpyp.errors import InitializationError, ResourceError
from ezpyp.model.kinds import Requests
from ezpyp.model.request import Request
from ezpyp.ranks import exits
from ezpyp.run.job import Job
from ezpyp.schedule.placement import Place, cannot_hold, crowded, describe, idle_gpus, underused
from ezpyp.scripts import renewed
from ezpyp.scripts.loading import main_script
from ezpyp.system import gpus, pools


def check(job: Job, requests: Requests | None, places: Sequence[Place]) -> None:
    """Refuse on every rank, before anything runs, what no node has or some rank cannot give.

    Raises:
        ResourceError: a step asks for more than any node has; GPU steps after the script started CUDA (message 5);
            steps with several cores after the script ran an OpenMP region; new interpreters where no script is run.
    """
    if requests is None and job.settings.start == "fork":
        return
    asked = {job.plan.steps[k].name: each for k, each in requests.special(job.todo).items()} if requests else {}
    problem = ""
    if job.settings.executor != "inline":
        problem = _spoilt(asked) if job.settings.start == "fork" else _cannot_begin_anew()
    problems = [problem] if job.link is None else job.link.gather(problem)
    if found := next((each for each in (*_missing(asked, places), *problems) if each), ""):
        error = ResourceError(found)
        error.quiet = job.rank != 0
        raise error


def wants_gpus(requests: Requests | None) -> bool:
    """Whether a step asks for GPUs: then they are granted to such steps, and the others see none."""
    return requests is not None and any(request.gpus for request in requests.listed)


def granted_from(places: Sequence[Place], requests: Requests | None) -> dict[str, tuple[str, ...]]:
    """By host the GPUs that there are for steps."""
    found: dict[str, tuple[str, ...]] = {}
    for place in places if wants_gpus(requests) else ():
        if place.stock.gpus:
            found[place.host] = tuple(dict.fromkeys((*found.get(place.host, ()), *place.stock.gpus)))
    return found


def _missing(asked: Mapping[str, Request], places: Sequence[Place]) -> Iterator[str]:
    """What no node has."""
    for name, request in asked.items():
        if has := cannot_hold(places, request):
            yield (
                f"Step '{name}' asks for {describe(request)}, and no node has that: {has}. "
                "Ask the scheduler for more, or ask for less. Nothing was run."
            )


def _cannot_begin_anew() -> str:
    """Why the script cannot be run once more, or ""."""
    try:
        renewed.command(is_run=exits.from_script())
    except InitializationError as error:
        return str(error)
    return ""


def _spoilt(asked: Mapping[str, Request]) -> str:
    """What the script did that keeps forked helpers from giving what steps ask for, or ""."""
    by = gpus.started() if any(request.gpus for request in asked.values()) else None
    if by is not None:
        from ezpyp.scripts.cuda import starts_cuda

        where = ", ".join(filter(None, (by, starts_cuda(main_script()))))
        return (
            f"CUDA was started before execute(){f' ({where})' * bool(where)}, and forked helpers cannot use it. "
            "Move that line into the step. Or have each helper run the script itself: EZPYP_START=fresh."
        )
    wide = next(((name, request) for name, request in asked.items() if request.cpus > 1), None)
    if wide is not None and (spoilt := pools.spoilt_pools()):
        return (
            f"Step '{wide[0]}' asks for {wide[1].cpus} cores, but {', '.join(spoilt)} ran threads before execute() and "
            "would hang in forked helpers. Move what the script computes into a step. Nothing was run."
        )
    return ""


def remarks(job: Job, ready: int, places: Sequence[Place], requests: Requests | None) -> list[str]:
    """What of the nodes this run leaves unused, or shares badly."""
    found: list[str] = []
    word = f"EZPYP_{'WORKERS' if job.link is None else 'HELPERS'}"
    if job.settings.executor != "inline" and job.settings.helpers == 1 and requests is None:
        found += underused(places, ready, f"{word}=auto")
    if job.settings.executor != "inline" and requests is not None and wants_gpus(requests):
        gpus_of = [request.gpus for request in requests.listed]
        wanted = sum(gpus_of[requests.numbers[k]] for k in job.todo)
        found += idle_gpus(places, max(gpus_of), wanted, word)
    if (
        any(place.stock.gpus for place in places)
        and not wants_gpus(requests)
        and not gpus.left_alone()
        and gpus.uses_gpus()
    ):
        found += crowded(places)
    return found
