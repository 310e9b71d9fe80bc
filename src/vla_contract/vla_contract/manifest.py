"""The files of a checkpoint folder, each with its sha256: looked at before anything of the folder is read as a model.

`MANIFEST.sha256` has the format of `sha256sum`, so `sha256sum -c MANIFEST.sha256` says the same. A folder with one
holds what it lists and nothing else but documents. A folder without one may be loaded (`policy.json` can still name the
digest of the weights), but never when its only weights are pickles: unpickling runs whatever code the file holds.

`python -m vla_contract.manifest FOLDER` writes it.
"""

import hashlib
import sys
from pathlib import Path

from vla_contract.errors import ConfigError
from vla_contract.policy import file_digest

MANIFEST_FILE = "MANIFEST.sha256"
DOCUMENTS = (".md", ".txt", ".gitattributes")  # beside the model, read by people; not listed by `write_manifest`
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".msgpack", ".h5")


def check_files(folder: Path) -> str:
    """Checks a checkpoint folder before it is loaded.

    Returns:
        sha256 of the manifest, hex; empty: there is none.

    Raises:
        ConfigError: naming the file that is missing, changed or not listed, or that is a pickle with no safetensors
            beside it.
    """
    path = folder / MANIFEST_FILE
    files = _files(folder)
    if not path.is_file():
        _refuse_pickles(folder, files)
        return ""
    listed = _read(path)
    for name, digest in listed.items():
        if name not in files:
            raise ConfigError(f"{folder}: '{name}' is missing, {MANIFEST_FILE} lists it; fetch the checkpoint again")
        found = file_digest(folder / name)
        if found != digest:
            raise ConfigError(
                f"{folder / name} has sha256 {found}, {MANIFEST_FILE} names {digest}: it was changed or damaged; fetch "
                f"the checkpoint again, or if you changed it: python -m vla_contract.manifest {folder}"
            )
    for name in files:
        if name not in listed and not name.endswith(DOCUMENTS):
            raise ConfigError(
                f"{folder}: '{name}' is not in {MANIFEST_FILE}; remove it, or if it belongs there: "
                f"python -m vla_contract.manifest {folder}"
            )
    _refuse_pickles(folder, files)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path) -> Path:
    """Lists every file of a checkpoint folder but its documents; returns the manifest's path.

    Raises:
        ConfigError: when a file cannot be read, or the only weights are pickles.
    """
    files = [name for name in _files(folder) if not name.endswith(DOCUMENTS)]
    _refuse_pickles(folder, files)
    path = folder / MANIFEST_FILE
    path.write_text("".join(f"{file_digest(folder / name)}  {name}\n" for name in files))
    return path


def _files(folder: Path) -> list[str]:
    """All files below the folder but the manifest and caches of tools, relative, in order."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(n for n in names if n != MANIFEST_FILE and not n.startswith(".") and "/." not in n)


def _read(path: Path) -> dict[str, str]:
    listed = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        digest, gap, name = line.partition("  ")
        whole = len(digest) == 64 and all(c in "0123456789abcdef" for c in digest)
        if not (whole and gap and name) or name in listed or name.startswith("/") or ".." in Path(name).parts:
            raise ConfigError(f"{path}, line {number}: '{line[:80]}', expected 'SHA256  NAME' of a file of the folder")
        listed[name] = digest
    if not listed:
        raise ConfigError(f"{path} lists no file; write it again: python -m vla_contract.manifest {path.parent}")
    return listed


def _refuse_pickles(folder: Path, files: list[str]) -> None:
    pickled = [name for name in files if name.endswith(PICKLES)]
    if pickled and not any(name.endswith(".safetensors") for name in files):
        raise ConfigError(
            f"{folder} holds weights as '{pickled[0]}', which can run code when it is read; convert it to safetensors "
            "where you trust it, and remove it here"
        )


if __name__ == "__main__":
    print(write_manifest(Path(sys.argv[1])))
