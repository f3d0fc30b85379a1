"""Open what a URL names as a store of objects: a folder, or any file system of fsspec."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loraport.errors import MissingError, SettingsError
from loraport.files.disk.user_paths import expand_home
from loraport.objects.folder import Folder
from loraport.objects.network import FsspecFolder
from loraport.objects.patience import Patience
from loraport.objects.store import ObjectStore

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
"""At least two letters: one is a drive of Windows."""
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
_OPTIONS: dict[str, dict[str, object]] = {
    # Our patience alone asks again: a client that does so itself would hide that an answer was lost.
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "default_cache_type": "none"},
}
_OPTIONS["s3a"] = _OPTIONS["s3"]
_NO_STORES = ("http", "https", "zip", "tar", "github", "git", "data", "reference", "blockcache", "filecache")


def open_objects(url: str, *, patience: Patience | None = None) -> ObjectStore:
    """Return the store that a URL names: a folder's path or `file://`, `s3://`, `gs://`, `hf://` and what fsspec knows.

    Nothing is read or written yet. Credentials and endpoints are the clients' own, from the environment: such as
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL.
    Raises SettingsError for a URL that names no store, MissingError where a package has to be installed first.
    """
    patience = Patience() if patience is None else patience
    found = _SCHEME.match(url)
    if not found:
        if not url:
            raise SettingsError("the place of the objects is empty; give a folder or a URL such as s3://bucket/run")
        return ObjectStore(Folder(expand_home(url)), patience)
    scheme = found["scheme"].lower()
    if scheme == "file":
        return ObjectStore(Folder(local_path(url)), patience)
    return ObjectStore(_on_network(url, scheme), patience)


def is_url(text: str) -> bool:
    """Return whether a text begins as a URL does."""
    return _SCHEME.match(text) is not None


def local_path(url: str) -> Path:
    """Return the path that a file URL names. Raises SettingsError for one of another machine."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
        raise SettingsError(f"{url} names no folder of this machine; write file:///folder, or the path alone")
    path = unquote(url.split("://", 1)[1].removeprefix(parts.netloc))
    return Path(path[1:] if re.match(r"/[A-Za-z]:", path) else path)


def _on_network(url: str, scheme: str) -> FsspecFolder:
    if scheme in _NO_STORES:
        raise SettingsError(f"{url}: {scheme} is no store that is written to; give a folder, s3://, gs:// or hf://")
    try:
        import fsspec
    except ImportError as error:
        raise MissingError(f"{url} is read with fsspec; install it: pip install 'loraport[stores]'") from error
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        how = f"install {package}: pip install {package}" if package else f"{error}".rstrip(".")
        raise MissingError(f"{url} needs a package that is not here; {how}") from error
    except ValueError as error:
        raise SettingsError(f"{url}: {scheme} is no kind of store that is known; give s3://, gs:// or hf://") from error
    options = {**_OPTIONS.get(scheme, {}), "skip_instance_cache": True, "use_listings_cache": False}
    system = kind(**options)
    if scheme in ("s3", "s3a"):
        system.retries = 1
    root = str(kind._strip_protocol(url)).rstrip("/")
    if not root and scheme != "memory":
        raise SettingsError(f"{url} names no place; write what stands behind it, such as {scheme}://bucket/run")
    return FsspecFolder(system, scheme, root, url.rstrip("/"))
