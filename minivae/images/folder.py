"""Image files in a folder and the folders in it, whose names say what are splits and labels."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from minivae.errors import UserError
from minivae.images import photos
from minivae.images.split import Split, reading, reason
from minivae.images.stream import memory

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test",
          "val": "val", "valid": "val", "validation": "val"}  # by a folder's name
PAIRED = {"image", "images", "img", "imgs", "mask", "masks", "label", "labels", "annotations"}


def find(root):
    """The paths, relative to `root`, of all image files in it, sorted; hidden ones are left out.

    Links are followed; a folder to which several lead is read once.
    """
    files = []
    seen = set()
    with reading(root):
        for parent, folders, names in os.walk(root, onerror=_raise, followlinks=True):
            inside = Path(parent).relative_to(root)
            files += [inside / name for name in names
                      if _is_shown(name) and Path(name).suffix.lower() in photos.SUFFIXES]
            seen.add(os.path.realpath(parent))
            folders[:] = [name for name in sorted(folders) if _is_shown(name)
                          and os.path.realpath(Path(parent, name)) not in seen]
    return sorted(files)


def _raise(error):
    raise error


def _is_shown(name):
    return not name.startswith(".")


def read(root, files, size, skip_damaged):
    """The Splits of image files; their labels are the names of the folders that hold them, if any.

    All pages of a file are images. UserError names every file that cannot be read, unless they are
    to be skipped.
    """
    with reading(root):
        groups, notes = _groups(files)
        files = list(itertools.chain(*groups))
        classes = _classes(files)
        found = {}
        damaged = []
        sizes = set()
        for file, (pages, said, error) in _each(root, files, size):
            if error:
                damaged.append(f"{file} ({error})")
                continue
            if not found and len(files) * pages[0].nbytes > memory():  # now, not after minutes
                raise MemoryError
            found[file] = pages
            notes |= said
            sizes.update(page.shape[:2] for page in pages)
            if size is None:  # now, not when all of them are in memory
                photos.refuse_sizes(sizes)
        if damaged:
            listed = (f"{len(damaged)} of {len(files)} image files cannot be read: "
                      f"{', '.join(damaged)}")
            if not skip_damaged or not found:
                raise UserError(f"{listed}; put good copies in their place, or add --skip-damaged "
                                "to leave them out")
            notes.add(f"{listed}; they are left out")
        channels = max(page.shape[2] for pages in found.values() for page in pages)
        dtypes = {page.dtype for pages in found.values() for page in pages}
        if len(dtypes) > 1:
            raise UserError("some of its images have floating-point pixels and others have not; "
                            "save them alike")
        shape = (*sizes.pop(), channels)
        splits = [_split(group, found, classes, shape, *dtypes) for group in groups]
        for split in splits:
            split.path = root
        splits[0].notes = sorted(notes)
        return splits


def _each(root, files, size):
    """(file, (pages, notes, error)) of each file, in turn; error says why it cannot be read."""
    def attempt(file):
        try:
            return *photos.read(root / file, size), None
        except MemoryError:
            raise
        except UnidentifiedImageError:
            return None, None, "not an image"
        except Exception as e:  # for damaged bytes Pillow raises more than a dozen kinds
            return None, None, reason(e)

    with ThreadPoolExecutor() as pool:
        yield from zip(files, tqdm(pool.map(attempt, files), "reading images", len(files), delay=1,
                                   leave=False, disable=None), strict=True)


def _split(group, found, classes, shape, dtype):
    """The Split of a group of files; it takes their pages out of `found`."""
    pages = []
    names = []
    labels = []
    for file in group:
        of_file = found.pop(file, [])
        for number, page in enumerate(of_file, 1):
            pages.append(page)
            names.append(f"{file.as_posix()}#{number}" if len(of_file) > 1 else file.as_posix())
            labels.append(classes[file])
    images = np.empty((len(pages), *shape), dtype)
    for row in reversed(range(len(pages))):
        images[row] = pages.pop()  # what is no longer needed is freed as it goes
    return Split(images, None if None in labels else np.array(labels), names=names)


def _groups(files):
    """[training files] or [training files, test files], and notes on the files in neither."""
    found = {}
    for file in files:
        names = (SPLITS.get(part.lower()) for part in file.parts[:-1])
        found.setdefault(next(filter(None, names), None), []).append(file)
    if len(found) == 1:
        return list(found.values()), set()
    if "train" not in found:
        raise UserError("some of its images are in a folder for testing, and none in a folder "
                        "named train; put the others there")
    groups = [found.pop("train")]
    for name in ("test", "val"):
        if name in found and len(groups) == 1:
            groups.append(found.pop(name))
    return groups, {f"{len(left)} images in {left[0].parent} and the like are in neither the "
                    "training nor the test folder, and are left out" for left in found.values()}


def _classes(files):
    """{file: the name of the class that it is in}, None where folders name no classes.

    Those are the folders below the last one that all files share, splits apart.
    """
    folders = [tuple(part for part in file.parts[:-1] if part.lower() not in SPLITS)
               for file in files]
    shared = 0
    while all(len(folder) > shared and folder[shared] == folders[0][shared] for folder in folders):
        shared += 1
    names = [folder[shared] if len(folder) > shared else None for folder in folders]
    stems = {}
    for file, name in zip(files, names, strict=True):
        stems.setdefault(name, set()).add(file.stem)
    for name, other in itertools.permutations(filter(None, stems), 2):
        if name.lower() in PAIRED and stems[name] & stems[other]:
            raise UserError(f"{name}/ and {other}/ hold files of the same names, which look like "
                            "pairs; give one of the two folders, or move the other elsewhere")
    return dict(zip(files, names, strict=True))
