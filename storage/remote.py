"""A lake in an object store: a mirror folder on this machine that knows its store. The store is the truth.

Objects are named as the files of a lake are; those of an artifact's data lie under `data/` with their digest in the
name, so that two writers of different bytes never overwrite each other. Whatever decides (a manifest, a booking) is
put on the condition that nothing is there; this takes the place of a rename. On a plain lake these functions do what
`shards` does, or nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from curation.errors import DataError, UserError
from storage import shards
from storage.layout import FILES, FORMAT, MANIFEST, pretty_json
from storage.store import Store, url_of

Files = Mapping[str, Mapping[str, Any]]

ABOUT = "remote.json"
DEPTH = {"artifacts": 3, "datasets": 2, "runs": 1, "costs": 2, "alpha": 2, "openings": 2, "reports": 1}
SMALL = (
    "artifacts",
    "datasets",
    "runs",
    "costs",
    "alpha",
    "openings",
)  # manifests and records: mirrored whole
WITH_MANIFEST = ("artifacts", "datasets")
PART = r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*"
FILE = re.compile(rf"({PART}/)?{PART}")
SMALL_AT_ONCE, LARGE = 64, 64 << 20
log = logging.getLogger("gradus")


def folder_of(address: Path | str, create: bool) -> Path:
    """The folder of the lake at a path or URL: of a URL the mirror on this machine; makes the lake in the store.

    A mirror's name depends on the lake's id: a lake that was deleted and made again has another mirror.
    """
    url = url_of(address)
    if url is None:
        return Path(address).expanduser().resolve()
    marker = _marker(url, create, os.getpid())
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradus"
    cached = Path(os.environ.get("GRADUS_CACHE") or default).expanduser().resolve()
    root = cached / "lakes" / hashlib.blake2b(url.encode() + marker, digest_size=12).hexdigest()
    with shards.disk_errors(f"no mirror of {url} was made", "the lake is untouched"):
        for name, data in ((ABOUT, pretty_json({"url": url})), ("lake.json", marker)):
            if not (root / name).exists():
                shards.create_file(root / name, data)
    return root


@cache
def _marker(url: str, create: bool, pid: int) -> bytes:
    store = Store(url)
    if (marker := store.read("lake.json")) is not None:
        return marker
    if not create:
        raise UserError(f"there is no lake in {url}; `gradus run RECIPE --lake {url}` makes one")
    marker = pretty_json({"format": FORMAT, "id": secrets.token_hex(16)})
    if store.create("lake.json", marker) and store.create("lake.json", marker):
        store.remove(["lake.json"])
        raise UserError(
            f"{url} cannot hold a lake: its store lets a second writer overwrite the first (it ignores "
            "If-None-Match); nothing was left in it; use a store with conditional puts, or a folder"
        )
    return store.read("lake.json") or marker


def of(root: Path) -> Store | None:
    """The store of which this folder is a mirror; None for a plain lake."""
    return _of(str(root), os.getpid())


@cache
def _of(root: str, pid: int) -> Store | None:
    about = Path(root, ABOUT)
    return Store(shards.read_json(about)["url"]) if about.exists() else None


def create_file(root: Path, path: Path, data: bytes) -> bool:
    """True when this call made `path`, whole; False when it was there, and stays as it is."""
    store = of(root)
    if store is None:
        return shards.create_file(path, data)
    made = store.create(_name(root, path), data)
    if made:
        shards.create_file(path, data)
    elif not path.exists():
        copied(root, path)
    return made


def replace_file(root: Path, path: Path, data: bytes) -> None:
    """`path` holds `data`, whole: readers see the old bytes or the new ones."""
    if (store := of(root)) is not None:
        store.put(_name(root, path), data)
    shards.replace_file(path, data)


def copied(root: Path, path: Path) -> bool:
    """Is the file there? A mirror has it then, if the store does."""
    if path.exists():
        return True
    store = of(root)
    data = None if store is None else store.read(_name(root, path))
    if data is not None:
        shards.create_file(path, data)
    return data is not None


def move_folder(root: Path, aside: Path, target: Path) -> bool:
    """True when what is published as `target` has the bytes laid out in `aside`; False when others were first.

    In a store: data first, the manifest decides, then the mirror follows.
    """
    store = of(root)
    if store is None:
        return shards.move_folder(aside, target)
    manifest, name = (aside / MANIFEST).read_bytes(), _name(root, target / MANIFEST)
    _send(store, aside, _name(root, target), shards.read_json(aside / MANIFEST)["files"])
    if not store.create(name, manifest) and store.read(name) != manifest:
        copied(root, target / MANIFEST)
        return False
    if not shards.move_folder(aside, target):
        shards.replace_file(target / MANIFEST, manifest)  # its files are fetched when they are read
    return True


def _send(store: Store, source: Path, folder: str, files: Files) -> None:
    """Puts data files that are not there yet; a killed publication goes on where it was."""
    there = store.list(f"data/{folder}")
    names = {_data_name(folder, name, facts): name for name, facts in files.items()}
    sizes = {name: there[name].size for name in names if name in there}
    store.send({to: source / name for to, name in names.items() if sizes.get(to) != files[name]["bytes"]})


def fetch(root: Path, folder: Path, files: Files) -> None:
    """These files of an artifact are in the folder of a mirror; `DataError`: an object is gone or damaged."""
    store = of(root)
    if store is None or not _missing(folder, files):
        return
    lock = (
        root / "work" / "fetch" / f"{hashlib.blake2b(str(folder).encode(), digest_size=12).hexdigest()}.lock"
    )
    with shards.disk_errors(f"{store.url} was not read", "the lake is untouched"), shards.locked(lock):
        missing = _missing(folder, files)
        size = sum(facts["bytes"] for facts in missing.values())
        if size > LARGE:
            log.warning("fetching %d files, %.0f MB, from %s", len(missing), size / 1e6, store.url)
        _get_data(store, _name(root, folder), missing, folder)
        lock.unlink(missing_ok=True)


def _get_data(store: Store, name: str, files: Files, folder: Path) -> None:
    wanted = {_data_name(name, file, facts): (folder / file, facts) for file, facts in files.items()}
    asides = {name: shards.aside_of(path) for name, (path, _) in wanted.items()}
    try:
        _get(store, asides)
        for name, (path, facts) in wanted.items():
            if (found := shards.digest_of(asides[name])) != facts:
                raise DataError(
                    f"{store.url}/{name} is damaged: {found}, published as {facts}; it is not used; "
                    "restore the object from a backup or an earlier version of it"
                )
            shards.fsync_file(asides[name])
            asides[name].replace(path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


def _get(store: Store, files: Mapping[str, Path], at_once: int | None = None) -> None:
    try:
        store.get(files, at_once) if at_once else store.get(files)
    except FileNotFoundError as error:
        raise DataError(
            f"{store.url} lacks an object that its manifest or listing names ({error}); restore it from a backup, "
            "or run again when it was removed on purpose"
        ) from error


def refresh(root: Path, *folders: str) -> None:
    """A mirror has all manifests and records of these folders, as they are in the store; gone artifacts are gone."""
    if (store := of(root)) is None:
        return
    with shards.disk_errors(f"{store.url} was not read", "the lake is untouched"):
        for folder in folders:
            _refresh(root, store, folder)


def _refresh(root: Path, store: Store, folder: str) -> None:
    before = list(root.glob(f"{folder}/**/{MANIFEST}")) if folder in WITH_MANIFEST else []
    listed = {name: one for name, one in store.list(folder).items() if _is_ours(name, folder)}
    new = [
        name
        for name, one in listed.items()
        if _differs(root / name, one.size, one.put_ns if folder == "runs" else None)
    ]
    asides = {name: shards.aside_of(root / name) for name in new}
    try:
        _get(store, asides, SMALL_AT_ONCE)
        for name, aside in asides.items():
            shards.fsync_file(aside)
            os.utime(aside, ns=(listed[name].put_ns, listed[name].put_ns))
            aside.replace(root / name)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
    for manifest in before:  # found before the listing, which lacks what this machine publishes meanwhile
        if _name(root, manifest) not in listed:
            manifest.unlink(missing_ok=True)
            shutil.rmtree(manifest.parent, ignore_errors=True)


def names(root: Path, folder: str) -> set[str]:
    """Names of the files in a folder of the lake, such as reports; they need not be in the mirror."""
    store = of(root)
    if store is None:
        return {path.name for path in root.glob(f"{folder}/[!.]*")}
    return {name.rpartition("/")[2] for name in store.list(folder) if _is_ours(name, folder)}


def clean(root: Path, folder: Path) -> None:
    """The store has nothing of this folder: first goes what says that it is there, then the data."""
    if (store := of(root)) is not None:
        for name in (_name(root, folder), f"data/{_name(root, folder)}"):
            store.remove(store.list(name))


def send_shard(root: Path, work: Path, key: str) -> None:
    """A finished shard of a draft is in the store, for machines that make the same artifact."""
    if (store := of(root)) is None:
        return
    shard = work / "shards" / key
    files = {
        path.relative_to(shard).as_posix(): shards.digest_of(path)
        for path in shard.rglob("*")
        if path.is_file()
    }
    _send(store, shard, _name(root, shard), files)
    store.create(f"{_name(root, shard)}.json", pretty_json(files))


def fetch_shards(root: Path, work: Path, keys: Collection[str]) -> set[str]:
    """Those of these shards that are finished, here or on another machine; all of them are here now."""
    here = shards.finished_shards(work) & set(keys)
    store, folder = of(root), work / "shards"
    if store is None or len(here) == len(set(keys)):
        return here
    sent = store.list(_name(root, folder))
    for key in sorted(set(keys) - here):
        marker = f"{_name(root, folder / key)}.json"
        facts = store.read(marker) if marker in sent else None
        if facts is not None:
            _fetch_shard(store, _name(root, folder / key), json.loads(facts), work, key)
            here.add(key)
    return here


def _fetch_shard(store: Store, name: str, files: Files, work: Path, key: str) -> None:
    aside = work / "tmp" / f"{key}.{os.getpid()}.{secrets.token_hex(4)}"
    with shards.disk_errors(f"shard {key} was not fetched", f"finished shards are kept in {work}"):
        try:
            (aside / FILES).mkdir(parents=True)
            _get_data(store, name, files, aside)
            (work / "shards").mkdir(parents=True, exist_ok=True)
            shards.move_folder(aside, work / "shards" / key)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _data_name(folder: str, name: str, facts: Mapping[str, Any]) -> str:
    """The object of a data file: its digest is part of the name."""
    if not FILE.fullmatch(name):
        raise DataError(f"{folder} names a file {name!r}, which no Gradus writes; it is not used")
    stem, dot, suffix = name.rpartition(".")
    stem, suffix = (stem, f".{suffix}") if dot else (name, "")
    return f"data/{folder}/{stem}.{facts['blake2b'][:16]}{suffix}"


def _missing(folder: Path, files: Files) -> dict[str, Mapping[str, Any]]:
    """Those of these files that a mirror lacks, or has with another size."""
    return {name: facts for name, facts in files.items() if _differs(folder / name, facts["bytes"])}


def _differs(path: Path, size: int, put_ns: int | None = None) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return True
    return found.st_size != size or put_ns not in (None, found.st_mtime_ns)


def _is_ours(name: str, folder: str) -> bool:
    """Is an object one that Gradus puts into this folder? A store may hold any name."""
    parts = name.split("/")[1:]
    whole = len(parts) == DEPTH[folder] and all(part and part[0] != "." for part in parts)
    return whole and (folder not in WITH_MANIFEST or parts[-1] == MANIFEST)
