"""HDF5 files of strangers: numbers that are in the file itself."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py


def dataset_within(file: "h5py.File", name: str) -> "h5py.Dataset":
    """The dataset of a name such as `group/dataset`. KeyError if there is none, ValueError for numbers of other files.

    HDF5 may take them from any file that can be read here: by a link, as external storage, as a virtual dataset.
    """
    import h5py

    item = file
    for part in name.split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise KeyError(f"no dataset {name!r}")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{part!r} is a link, expected numbers in the file itself")
        item = item[part]
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"expected numbers called {name!r}, got {item}")
    if item.external or item.is_virtual:
        raise ValueError(f"the numbers of {name!r} are in another file, expected them in this one")
    return item
