"""Fashion-MNIST as a data folder: 70,000 grey pictures of clothes, padded from 28×28 to 32×32.

The files are Zalando's idx files (https://github.com/zalandoresearch/fashion-mnist, MIT), as the Debian package
`dataset-fashion-mnist` carries them.
"""

from __future__ import annotations

import gzip
import math
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid.data.folder import DataError, DataFolder, Item, cache_root, create_images, new_folder, write_records
from hybrid.data.sources import run_client, sha256

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIZE, PADDED = 28, 32
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PARTS = {"train": "train", "test": "t10k"}

LICENSES_TEXT = """# Licences of the pictures

## Fashion-MNIST

- Author: Zalando SE, Han Xiao, Kashif Rasul, Roland Vollgraf
- Licence: MIT (SPDX `MIT`)
- Source: https://github.com/zalandoresearch/fashion-mnist, as packaged by Debian (`dataset-fashion-mnist`)

The MIT License (MIT), Copyright © 2017 Zalando SE, https://tech.zalando.com
"""


def read_idx(file: Path) -> NDArray[np.uint8]:
    """A gzipped idx file of unsigned bytes: (n,) labels or (n, height, width) pictures."""
    try:
        data = gzip.decompress(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{file} not found; give --from a folder with the idx files or {PACKAGE}_*.deb") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: is no readable gzip file, truncated? ({error}); download it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{file}: is no idx file of unsigned bytes; download it again")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise DataError(f"{file}: idx header is truncated; download it again")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected, got = math.prod(shape), len(data) - start
    if got != expected:
        raise DataError(f"{file}: expected {expected} values for shape {shape}, got {got}; download it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def build_fashion(out: str | Path, *, source: Path | None = None) -> DataFolder:
    """Builds the folder: train pictures first, then test; one view each, uint8 (n, 1, 32, 32, 1).

    source: a folder with the four idx files or with the Debian package; None looks for the installed package and
    otherwise downloads it with apt-get.
    """
    with _idx_folder(source) as folder, new_folder(out) as work:
        pictures, labels = {}, {}
        inputs: dict[str, str] = {}
        for split, part in PARTS.items():
            image_file, label_file = folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"
            pictures[split], labels[split] = read_idx(image_file), read_idx(label_file)
            if pictures[split].shape != (len(labels[split]), SIZE, SIZE):
                raise DataError(
                    f"{image_file}: expected shape {(len(labels[split]), SIZE, SIZE)}, got {pictures[split].shape}"
                )
            if labels[split].size and labels[split].max() >= len(CLASSES):
                raise DataError(f"{label_file}: expected labels below {len(CLASSES)}, got {labels[split].max()}")
            inputs |= {file.name: sha256(file) for file in (image_file, label_file)}
        total = sum(len(part) for part in labels.values())
        images = create_images(work, (total, 1, PADDED, PADDED, 1))
        items: list[Item] = []
        margin = (PADDED - SIZE) // 2
        for split in PARTS:
            start = len(items)
            rows = slice(start, start + len(labels[split]))
            images[rows, 0, margin : margin + SIZE, margin : margin + SIZE, 0] = pictures[split]
            items += [
                {"index": start + n, "label": int(label), "captions": [CLASSES[label]], "split": split}
                for n, label in enumerate(labels[split])
            ]
        images.flush()
        meta = {
            "name": "fashion",
            "size": [PADDED, PADDED],
            "channels": 1,
            "views": 1,
            "pictures": total,
            "splits": {split: len(labels[split]) for split in PARTS},
            "classes": list(CLASSES),
            "inputs": inputs,
        }
        write_records(work, items, meta, LICENSES_TEXT)
    return DataFolder.open(out)


@contextmanager
def _idx_folder(source: Path | None) -> Iterator[Path]:
    """The folder with the idx files, unpacking the Debian package for as long as needed."""
    wanted = "train-images-idx3-ubyte.gz"
    if source is None:
        if (INSTALLED / wanted).is_file():
            yield INSTALLED
            return
        source = cache_root() / "downloads"
        if not list(source.glob(f"{PACKAGE}_*.deb")):
            if shutil.which("apt-get") is None:
                raise DataError(f"apt-get is not installed; give --from a folder with the idx files or {PACKAGE}_*.deb")
            run_client(["apt-get", "download", PACKAGE], source, f"{PACKAGE}_*.deb")
    if (source / wanted).is_file():
        yield source
        return
    archives = sorted(source.glob(f"{PACKAGE}_*.deb"))
    if not archives:
        raise DataError(f"{source}: no {wanted} and no {PACKAGE}_*.deb; get it with: apt-get download {PACKAGE}")
    if shutil.which("dpkg-deb") is None:
        raise DataError("dpkg-deb is not installed; install dpkg, or give --from a folder with the idx files")
    with tempfile.TemporaryDirectory() as unpacked:
        done = subprocess.run(
            ["dpkg-deb", "-x", str(archives[-1]), unpacked], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DataError(f"{archives[-1]}: dpkg-deb cannot unpack it ({done.stderr.strip()}); download it again")
        yield Path(unpacked) / INSTALLED.relative_to("/")
