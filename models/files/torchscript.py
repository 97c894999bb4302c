"""Reads the one tensor in a TorchScript file without running anything from it.

dorado stores each tensor as a TorchScript module whose only parameter is named "0". `torch.jit.load` would compile the
code in such a file and might run it. Here, models/files/pickled.py reads the file as a plain ZIP with a pickle.
"""

import re
import zipfile
from pathlib import Path

import torch

from porestream.models.files.pickled import (
    FLOATING,
    Module,
    Tensor,
    UnsafeWeights,
    check_record,
    described,
    materialised,
    open_archive,
    pickle_of,
)

_MAX_TEXT_BYTES = 1 << 16


def read_tensor(path: Path) -> torch.Tensor:
    """Read the tensor in a dorado `NAME.tensor` file.

    Returns
    -------
    torch.Tensor
        float32, float16, bfloat16 or float64, as stored; contiguous, on the CPU.

    Raises
    ------
    UnsafeWeights
        The file is not a TorchScript archive, or holds anything other than one plain tensor.
    """
    try:
        with open_archive(path) as archive:
            return _tensor(archive)
    except UnsafeWeights as error:
        raise UnsafeWeights(f"{path}: refused: {error}") from None
    except Exception as error:
        raise UnsafeWeights(f"{path}: cannot be read as a TorchScript tensor: {error}") from error


def _tensor(archive: zipfile.ZipFile) -> torch.Tensor:
    records = {info.filename: info for info in archive.infolist()}
    pickled = pickle_of(archive)
    if not pickled:
        raise UnsafeWeights("not a TorchScript archive")
    folder = pickled.removesuffix("data.pkl")
    for name, info in records.items():
        is_code, is_values = name.startswith(f"{folder}code/"), name.startswith(f"{folder}data/")
        if not is_code:
            check_record(info)
        if info.file_size > _MAX_TEXT_BYTES and not is_values:
            raise UnsafeWeights(f"{name} is too large for a file with a single tensor")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsafeWeights(f"{name} uses a compression that TorchScript does not")
        if is_code and name.endswith(".py") and re.search(rb"\bdef\b", archive.read(name)):
            raise UnsafeWeights(f"{name} defines functions; a file with a single tensor needs none")
    if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
        raise UnsafeWeights("the tensor is not little-endian")
    module = described(archive.read(pickled), FLOATING)
    tensor = module.attributes.get("0") if isinstance(module, Module) else None
    if not isinstance(tensor, Tensor):
        raise UnsafeWeights("the file holds no tensor named '0'")
    return materialised(tensor, archive.read(f"{folder}data/{tensor.storage.record}"))
