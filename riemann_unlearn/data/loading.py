"""Datasets by name, path or source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from riemann_unlearn.data.samples import Dataset
from riemann_unlearn.data.sources import SOURCES, Source
from riemann_unlearn.data.sources.shards import Shards, shard_files
from riemann_unlearn.registry import did_you_mean


def list_datasets() -> list[str]:
    """Names that :func:`load` takes, in alphabetical order; sources that need a path are not among them.

    Examples
    --------
    >>> list_datasets()
    ['emoji', 'fashion-mnist']
    """
    return sorted(name for name, source in SOURCES.items() if source.named)


def load(data: str | Path | Source | Dataset = "emoji") -> Dataset:
    """A dataset by name, from a file or folder, or from a source of one's own.

    Parameters
    ----------
    data : str, Path, Source or Dataset
        A name from :func:`list_datasets`; or a path that one of the :data:`~riemann_unlearn.data.SOURCES`
        opens, such as a folder with a sub-folder for each class, one with a table of captions, or
        WebDataset shards, these also by a pattern such as ``folder/{0000..0041}.tar``; or a source, to load
        what it stands for; or a dataset, which is returned.

    Returns
    -------
    Dataset
        Its ``name`` loads it again, from wherever that is done: a path is made absolute.

    Raises
    ------
    ValueError
        When there is no such dataset, no source opens it, or it is not usable; the message says what and why.

    Examples
    --------
    >>> emoji = load("emoji")
    >>> emoji.seen.images.shape[1:]
    torch.Size([3, 48, 48])
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Source):
        return data.load(None)
    # A name goes before a folder of that name in the working directory, which './emoji' asks for.
    if isinstance(data, str) and data in list_datasets():
        return replace(_instance(SOURCES[data]).load(None), name=data)
    path = Path(data).expanduser().resolve()
    # Sources are asked about what exists; a pattern exists where some of its shards do.
    exists = path.exists()
    if not exists and not shard_files(path):
        hint = did_you_mean(data, list_datasets())
        raise ValueError(
            f"no dataset {str(data)!r}; {hint}Expected one of {', '.join(list_datasets())}, or a path, "
            f"and there is no {path}"
        )
    # The last registered is asked first, so that a third party's form goes before ours.
    for entry in reversed(list(SOURCES.values())) if exists else [Shards]:
        source = _instance(entry)
        if source.opens(path):
            # The resolved path: a run's config.yaml keeps it, and may be read from another working directory.
            return replace(source.load(path), name=str(path))
    known = "; ".join(f"{name}: {source.description}" for name, source in SOURCES.items())
    raise ValueError(f"{path} is nothing that a data source opens. There are {known}")


def _instance(source: Source | type[Source]) -> Source:
    return source() if isinstance(source, type) else source
