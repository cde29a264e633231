"""Names of weight files as paths: beside their configuration, in the user's folder of weights, or on the Hub.

This file knows where a name may lie and where the originals are published. It does not open any weights.
"""

from __future__ import annotations

import os
from pathlib import Path

from hybrid.checkpoint import SUFFIXES

FOLDER_VARIABLE = "HYBRID_WEIGHTS"
"""Environment variable that names the folder of downloaded weights."""

HUB = "hf://"

_LLAMAGEN = "FoundationVision/LlamaGen"
_LLAMAGEN_TEXT = "peizesun/llamagen_t2i"
_HALTON = "llvictorll/Halton-MaskGIT"
_RANDAR = "ziqipang/RandAR"
_ARPG = "hp-l33/ARPG"
_RAR = "yucornetto/RAR"
PUBLISHED: dict[str, str] = {
    **{f"c2i_{size}_256.pt": _LLAMAGEN for size in ("B", "L")},
    **{f"c2i_{size}_384.pt": _LLAMAGEN for size in ("B", "L", "XL", "XXL", "3B")},
    "vq_ds16_c2i.pt": _LLAMAGEN,
    "vq_ds8_c2i.pt": _LLAMAGEN,
    "t2i_XL_stage1_256.pt": _LLAMAGEN_TEXT,
    "t2i_XL_stage2_512.pt": _LLAMAGEN_TEXT,
    "vq_ds16_t2i.pt": _LLAMAGEN_TEXT,
    "flan-t5-xl": "google/flan-t5-xl",
    **{f"ImageNet_256_{size}.pth": _HALTON for size in ("tiny", "small", "base")},
    **{f"ImageNet_384_{size}.pth": _HALTON for size in ("small", "base", "large")},
    **{
        f"randar_{model}_360k_bs_1024_lr_0.0004.safetensors": _RANDAR
        for model in ("0.3b_llamagen", "0.7b_llamagen", "0.3b_maskgit")
    },
    **{f"arpg_{size}.pt": _ARPG for size in ("300m", "700m", "1b")},
    **{f"rar_{size}.bin": _RAR for size in ("b", "l", "xl", "xxl")},
    "maskgit-vqgan-imagenet-f16-256.bin": "fun-research/TiTok",
    **{f"Lumina-mGPT-{size}": f"Alpha-VLLM/Lumina-mGPT-{size}" for size in ("7B-512", "7B-768", "7B-1024", "34B-512")},
    "Lumina-mGPT-2.0": "Alpha-VLLM/Lumina-mGPT-2.0",
    "movqgan_270M.ckpt": "ai-forever/MoVQGAN",
}
"""Repository on huggingface.co of each original file or folder, as the authors' own pages name them."""

ELSEWHERE = {"vqgan.ckpt": "Meta's Chameleon release (https://github.com/facebookresearch/chameleon)"}
"""Originals that are on no hub."""


def resolve_weights(name: str, base: Path) -> Path:
    """The file or folder that a configuration's ``weights`` means.

    ``hf://owner/repo/file`` is fetched through ``huggingface_hub`` and its cache. A path with a folder in it is
    relative to ``base``; whether it exists is the reader's business. A bare name is looked for in ``base``, then in the
    folder that the environment variable HYBRID_WEIGHTS names, or in the current directory where it is not set.

    Args:
        name: as the configuration has it; ``~`` is the home folder.
        base: the configuration's folder.

    Raises:
        ValueError: one line: a bare name that is in none of these folders (with where it is published and the ways to
            provide it), or a Hub file that cannot be had.
    """
    if name.startswith(HUB):
        return _from_hub(name)
    path = Path(name).expanduser()
    if len(path.parts) != 1 or (base / path).exists():
        return base / path
    variable = os.environ.get(FOLDER_VARIABLE)
    folder = Path(variable).expanduser() if variable else Path()
    if (folder / path).exists():
        return folder / path
    where = f"{FOLDER_VARIABLE} ({folder})" if variable else f"the current directory ({folder.absolute()})"
    raise ValueError(f"{name}: neither beside the configuration nor in {where}; {_remedy(name, variable)}")


def _remedy(name: str, variable: str | None) -> str:
    put = "put it there" if variable else f"put it there, or set {FOLDER_VARIABLE} to its folder"
    repository = PUBLISHED.get(name)
    if name in ELSEWHERE:
        return f"{put}; it is part of {ELSEWHERE[name]}"
    if Path(name).suffix not in SUFFIXES:  # such as Lumina-mGPT-2.0
        return f"{put}; it is a folder: hf download {repository or 'owner/repo'} --local-dir {name}"
    if repository is None:
        return f"{put}, or write {HUB}owner/repo/{name} as its weights"
    return (
        f"it is published at https://huggingface.co/{repository}: {put}, "
        f"or write {HUB}{repository}/{name} as its weights to have it downloaded"
    )


def _from_hub(name: str) -> Path:
    """Download, or find in the Hub's cache.

    Raises:
        ValueError: a name without owner, repository and file; no ``huggingface_hub``; offline, or no such file.
    """
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise ValueError(f"{name}: expected {HUB}owner/repo/file")
    repository = f"{owner}/{repository}"
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise ValueError(
            f"{name}: needs huggingface_hub (pip install huggingface_hub); {_by_hand(repository, file)}"
        ) from None
    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise ValueError(f"{name}: cannot be had from the Hub ({reason}); {_by_hand(repository, file)}") from None


def _by_hand(repository: str, file: str) -> str:
    return (
        f"try again online, or download {file} from https://huggingface.co/{repository} into the folder that "
        f"{FOLDER_VARIABLE} names and write {Path(file).name} as its weights"
    )
