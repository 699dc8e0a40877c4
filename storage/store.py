"""An object store through fsspec: objects read, listed, and made where there are none; errors say what to do."""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from curation.errors import TransientError, UserError

PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+/-]*")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
TRIES = 3  # on top of those that the store's own library makes
AT_ONCE = 4  # files of data: a part of each is held whole while it travels
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
NEVER = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG)
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it; `put_ns` is another number for every other content."""

    size: int
    put_ns: int


def url_of(address: Path | str) -> str | None:
    """The URL when the address is one, even if `Path` took one of its slashes; None for a folder."""
    found = re.match(r"([a-z][a-z0-9+-]+):/+", str(address))
    if found is None:
        return None
    url = f"{found[1]}://{str(address)[found.end() :].rstrip('/')}"
    if found[1] in ("file", "local") or not PLACE.fullmatch(url.partition("://")[2]) or "/." in url:
        raise UserError(
            f"this {found[1]}:// address cannot hold a lake: write s3://bucket/prefix (letters, digits and . _ = + - "
            "only), or the path of a folder; credentials come from the environment, never from the address"
        )
    return url


class Store:
    """All objects under a URL, by their names relative to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import fsspec  # here: a plain lake need not wait for it

            self._fs, self._prefix = self._ask(fsspec.url_to_fs, url, use_listings_cache=False)
        except ImportError as error:
            extra = EXTRAS.get(url.partition(":")[0])
            command = f"; pip install 'gradus[{extra}]'" if extra else ""
            raise UserError(f"{url} cannot be opened: {error}{command}") from error

    def _ask(self, do: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """What the call gives, tried again when the network or the store is busy; `FileNotFoundError` as it is."""
        for attempt in range(TRIES):
            try:
                return do(*args, **more)
            except (FileNotFoundError, ImportError):
                raise
            except Exception as error:
                if getattr(error, "errno", None) in DISK_IS_FULL:
                    raise  # this machine's disk
                said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
                if refused := _refusal(error):
                    raise UserError(f"{self.url}: {refused} ({said}); nothing was changed") from error
                if attempt == TRIES - 1:
                    raise TransientError(
                        f"{self.url} does not answer ({said}); finished shards are kept in the mirror on this machine, "
                        "everything published in the store; run the same command again"
                    ) from error
                time.sleep(random.uniform(0.5, 1) * 2**attempt)

    def _do(self, do: Callable[..., Any], *args: Any, **more: Any) -> Any:
        try:
            return self._ask(do, *args, **more)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.url}: there is no such bucket ({error}); make it, or correct --lake; "
                "what was finished is kept in the mirror on this machine"
            ) from error

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None when there is none."""
        try:
            return self._ask(self._fs.cat_file, self._key(name))
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        """True when this call made the object; False when it was there, and stays as it is."""
        return self._do(self._create, self._key(name), data)

    def _create(self, key: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(key, data, mode="create")
        except FileExistsError:
            return False
        except OSError:
            # Not every store says by name that it is there; or the answer to an earlier try was lost.
            if self._fs.exists(key):
                return False
            raise
        return True

    def put(self, name: str, data: bytes) -> None:
        """The object holds `data`."""
        self._do(self._fs.pipe_file, self._key(name), data)

    def list(self, folder: str) -> dict[str, Listed]:
        """name -> object of all below a folder."""
        return self._do(self._list, folder)

    def _list(self, folder: str) -> dict[str, Listed]:
        found = self._fs.find(self._key(folder), detail=True)
        names = {key[len(self._prefix) + 1 :]: entry for key, entry in found.items()}
        return {
            name: Listed(entry["size"], _put_ns(entry))
            for name, entry in names.items()
            if name.startswith(f"{folder}/")
        }

    def send(self, files: Mapping[str, Path]) -> None:
        """The objects hold the bytes of these files; each appears whole."""
        if files:
            keys = [self._key(name) for name in files]
            self._do(self._fs.put, [str(path) for path in files.values()], keys, batch_size=AT_ONCE)

    def get(self, files: Mapping[str, Path], at_once: int = AT_ONCE) -> None:
        """The files hold the bytes of these objects; `FileNotFoundError` when one is missing."""
        if files:
            keys = [self._key(name) for name in files]
            self._ask(self._fs.get, keys, [str(path) for path in files.values()], batch_size=at_once)

    def remove(self, names: Iterable[str]) -> None:
        """These objects, listed before, are gone."""
        if keys := [self._key(name) for name in names]:
            self._do(self._fs.rm, keys)


def _refusal(error: Exception) -> str:
    """Why no later try can succeed; empty when one may."""
    if type(error).__name__ in NO_CREDENTIALS:
        return "there are no credentials; give them in the environment (AWS_ACCESS_KEY_ID, ...)"
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):
        return "the store denies access; check the credentials and what they may do"
    never = isinstance(error, ValueError | TypeError) or getattr(error, "errno", None) in NEVER
    return "the store cannot do this" if never else ""


def _put_ns(entry: Mapping[str, Any]) -> int:
    """When an object was put; below the second its ETag, so that two of one second differ."""
    put = entry.get("LastModified") or entry.get("mtime") or entry.get("created") or 0
    if isinstance(put, datetime):
        put = put.replace(tzinfo=put.tzinfo or UTC).timestamp()
    tag = str(entry.get("ETag") or entry.get("etag") or put)
    return int(put) * 10**9 + crc32(tag.encode()) % 10**9
