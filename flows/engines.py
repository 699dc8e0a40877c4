"""Where shards are computed: processes of this machine, or Prefect tasks on threads, Dask or Ray; the bytes are the same."""

from __future__ import annotations

import logging
import os
import pickle
import random
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

from curation.errors import TransientError, UserError
from storage.artifacts import Lake

# What each engine is, as help texts show it.
ENGINES = {
    "processes": "a process a core, or a device, of this machine; no Prefect tasks",
    "threads": "the same processes, shards shown as Prefect tasks",
    "dask": "Prefect tasks on the Dask cluster at GRADUS_DASK_ADDRESS, or on one of this machine",
    "ray": "Prefect tasks on the Ray cluster at GRADUS_RAY_ADDRESS, or on one of this machine",
}
MAX_TASKS = 200  # Prefect tasks of one stage: each costs the server 34 ms and the page a line
RETRIES = 3  # of a shard that met a TransientError
LOST = ("BrokenProcessPool", "KilledWorker", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass(frozen=True)
class ShardWork:
    """What workers do to the shards of one draft: `function(work_path, key, *job)`, which writes the shard.

    Names no path of this machine: `lake` is an address, `folder` is relative to it. `reads` are shards of the draft
    that the function looks at; `shared` is true when workers may be other machines.
    """

    lake: str
    folder: str
    function: Callable[..., None]
    reads: tuple[str, ...] = ()
    shared: bool = False


@dataclass
class Engine:
    """The workers of one run, made when first needed: processes by their devices, and a Prefect task runner."""

    name: str
    workers: int
    _pools: dict[tuple[str, ...], ProcessPoolExecutor] = field(default_factory=dict)
    _runner: Any = None

    def map(
        self, work: ShardWork, jobs: Mapping[str, tuple], label: str, devices: tuple[str, ...] = ()
    ) -> Iterator[None]:
        """Computes every job's shard, in any order; yields as often as there are shards, as they are finished.

        Raises what the first shard raised, `TransientError` when workers were lost again and again. Whatever ends it
        early ends the workers too; finished shards are kept.
        """
        begin = self._in_processes if self.name == "processes" else self._as_tasks
        try:
            yield from begin(work, jobs, label, devices)
        except BaseException as error:
            self.close(kill=True)
            if type(error).__name__ in LOST:
                raise TransientError(
                    f"{label}: a worker process was lost while it computed a shard ({type(error).__name__}), most often "
                    "because memory was full; finished shards are kept; free memory and type the same command again"
                ) from error
            raise

    def _in_processes(
        self, work: ShardWork, jobs: Mapping[str, tuple], label: str, devices: tuple[str, ...]
    ) -> Iterator[None]:
        pool = self._pool(devices)
        left = {pool.submit(compute, work, {key: job}) for key, job in jobs.items()}
        while left:
            # A wait without an end would not hear Ctrl-C that another thread was given.
            done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
            yield from [future.result() for future in done]

    def _as_tasks(
        self, work: ShardWork, jobs: Mapping[str, tuple], label: str, devices: tuple[str, ...]
    ) -> Iterator[None]:
        from prefect.futures import as_completed as as_tasks_complete

        body = self._to_processes(devices) if self.name == "threads" else compute_shards
        task = shard_task(label, body)
        groups = {}
        with _light_context():
            for group in grouped(jobs):
                named = f"{next(iter(group))}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
                # As bytes: Prefect and Dask look for futures inside everything else, also in a million row ids.
                parameters = {"shards": named, "message": pickle.dumps((work, group))}
                groups[self._started_runner().submit(task, parameters)] = group
        for future in as_tasks_complete(list(groups)):
            future.result()
            yield from [None] * len(groups[future])

    def _to_processes(self, devices: tuple[str, ...]) -> Callable[[str, bytes], None]:
        def compute_in_process(shards: str, message: bytes) -> None:
            self._pool(devices).submit(compute_shards, shards, message).result()

        self._pool(devices)  # made here, not by two threads at once
        return compute_in_process

    def _pool(self, devices: tuple[str, ...] = ()) -> ProcessPoolExecutor:
        """Processes of this machine: one thread each, on all cores or one for each device."""
        if devices not in self._pools:
            _one_thread_for_children()
            context = get_context("spawn")
            waiting = context.SimpleQueue()
            for device in devices:
                waiting.put(device)
            self._pools[devices] = ProcessPoolExecutor(
                len(devices) or self.workers,
                context,
                initializer=one_thread,
                initargs=(os.getpid(), waiting if devices else None),
            )
        return self._pools[devices]

    def _started_runner(self) -> Any:
        if self._runner is None:
            _one_thread_for_children()
            address = os.environ.get(f"GRADUS_{self.name.upper()}_ADDRESS")
            try:
                if address:
                    _knock(address)
                runner = RUNNERS[self.name](address, self.workers)
                self._runner = runner.__enter__()
                if self.name == "dask":
                    _ = runner.client  # connects
            except OSError as error:
                raise TransientError(
                    f"no {self.name} cluster answers at {address or 'this machine'} ({error}); nothing was computed; "
                    f"start it, correct GRADUS_{self.name.upper()}_ADDRESS, or use --engine processes"
                ) from error
        return self._runner

    def close(self, kill: bool = False) -> None:
        """Ends the workers; with `kill` also those in the middle of a shard."""
        for pool in self._pools.values():
            if kill:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(wait=not kill, cancel_futures=True)
        self._pools.clear()
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.__exit__(None, None, None)


def checked_engine(name: str | None = None) -> str:
    """The engine's name: given, else GRADUS_ENGINE, else processes. `UserError`: unknown, or not installed."""
    name = name or os.environ.get("GRADUS_ENGINE") or "processes"
    if name not in ENGINES:
        raise UserError(
            f"there is no engine {name!r}; engines: {', '.join(ENGINES)} (--engine, GRADUS_ENGINE)"
        )
    if name in ("dask", "ray") and find_spec(f"prefect_{name}") is None:
        raise UserError(f"the engine {name} is not installed; pip install 'gradus[{name}]'")
    return name


def scoring_devices() -> tuple[str, ...]:
    """Devices that score rows, one process each: GRADUS_DEVICES (cuda:0,cuda:1), else every GPU; none: all cores."""
    given = os.environ.get("GRADUS_DEVICES", "")
    if given:
        return tuple(device.strip() for device in given.split(",") if device.strip())
    import torch

    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))


def grouped(jobs: Mapping[str, tuple]) -> list[dict[str, tuple]]:
    """The jobs in order, in as many groups as there may be tasks."""
    keys = list(jobs)
    size = -(-len(keys) // MAX_TASKS)
    return [{key: jobs[key] for key in keys[i : i + size]} for i in range(0, len(keys), size or 1)]


def shard_task(label: str, body: Callable[[str, bytes], None]) -> Any:
    """A Prefect task that computes some shards; its result is nothing, and is stored nowhere."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    options: dict[str, Any] = {"persist_result": False, "cache_policy": NO_CACHE, "log_prints": False}
    return task(name=label, task_run_name=f"{label} {{shards}}", **options)(body)


def compute_shards(shards: str, message: bytes) -> None:
    """Worker: the shards of one task."""
    compute(*pickle.loads(message))


def compute(work: ShardWork, jobs: Mapping[str, tuple]) -> None:
    """Worker: makes those of these shards that are not there, on one thread; where machines differ, passes them on."""
    import torch

    torch.set_num_threads(1)
    lake = Lake(work.lake, create=False)
    done = lake.fetch_shards(work.folder, [*work.reads, *jobs]) if work.shared else set()
    for key, job in jobs.items():
        if key not in done:
            _attempt(work.function, lake.root / work.folder, key, *job)
            if work.shared:
                lake.send_shard(work.folder, key)


def _attempt(function: Callable[..., None], *arguments: Any) -> None:
    for wait_seconds in [2.0**n for n in range(RETRIES)]:
        try:
            return function(*arguments)
        except TransientError:
            time.sleep(wait_seconds * random.uniform(0.5, 1.5))  # not all workers at once
    return function(*arguments)


def one_thread(parent: int, devices: Any = None) -> None:
    """Sets a worker up: one thread, its device; interrupts are the parent's; it ends when its parent is gone."""
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["GRADUS_DEVICE"] = "cpu" if devices is None else devices.get()
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _one_thread_for_children() -> None:
    """So that sums have one order; libraries read these when they are loaded."""
    os.environ |= dict.fromkeys(ONE_THREAD, "1")


@contextmanager
def _light_context() -> Generator[None]:
    """Prefect sends the flow along with every task: within the block, one that does not have the whole run in it."""
    from prefect.context import FlowRunContext

    current = FlowRunContext.get()
    if current is None:
        yield
    else:
        with current.model_copy(update={"flow": _nameplate()}):
            yield


@lru_cache(maxsize=1)
def _nameplate() -> Any:
    from prefect import Flow

    return Flow(compute_shards, name="shards", validate_parameters=False)


def _knock(address: str) -> None:
    """Raises at once where nobody listens; the clusters' own clients try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _threads(address: str | None, workers: int) -> Any:
    from prefect.task_runners import ThreadPoolTaskRunner

    return ThreadPoolTaskRunner(max_workers=max(workers, len(scoring_devices())))


def _dask(address: str | None, workers: int) -> Any:
    from prefect_dask import DaskTaskRunner

    logging.getLogger("distributed").setLevel(
        logging.CRITICAL
    )  # else every coming and going of a worker is told
    if address:
        return DaskTaskRunner(address=address)
    own = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    return DaskTaskRunner(cluster_kwargs=own | {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"})


def _ray(address: str | None, workers: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers otherwise
    if not address:
        os.environ.setdefault(
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
        )  # its ports are then bound to loopback
    from prefect_ray import RayTaskRunner

    own = {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False}
    return RayTaskRunner(address, {} if address else own)


RUNNERS = {"threads": _threads, "dask": _dask, "ray": _ray}
