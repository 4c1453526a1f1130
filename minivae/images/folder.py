"""Image files in a folder and the folders in it, whose names say what are splits and labels."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from minivae.errors import UserError
from minivae.images import photos
from minivae.images.split import Split, reading, reason

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
        damaged = {}
        pages = dict(_try(partial(photos.look, upright=size is None), root, files, damaged))
        splits = []
        if pages:
            mode, shape = _common(pages, size)
            load = partial(photos.read, mode=mode, shape=shape, scale=size is not None)
            for group in groups:
                count = sum(len(pages[file]) for file in group if file in pages)
                images = np.empty((count, *shape), np.float32 if mode == "F" else np.uint8)
                split = Split(images, None, path=root, names=[])
                loaded = _try(load, root, [file for file in group if file in pages], damaged)
                notes |= _fill(split, loaded, classes)
                splits.append(split)
        if damaged:
            listed = ", ".join(f"{file} ({why})" for file, why in damaged.items())
            listed = f"{len(damaged)} of {len(files)} image files cannot be read: {listed}"
            if not skip_damaged or len(damaged) == len(files):
                raise UserError(f"{listed}; put good copies in their place, or add --skip-damaged "
                                "to leave them out")
            notes.add(f"{listed}; they are left out")
        splits[0].notes = sorted(notes)
        return splits


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
    if len(stems) < 2:
        return dict.fromkeys(files)
    return dict(zip(files, names, strict=True))


def _common(pages, size):
    """(mode, shape): Pillow's mode and the (H, W, C) that all pages can take."""
    found = set().union(*pages.values())
    modes = {mode for _, _, mode in found}
    if "F" in modes and len(modes) > 1:
        raise UserError("some of its images have floating-point pixels and others bytes; save them "
                        "alike")
    mode = "RGB" if "RGB" in modes else modes.pop()
    if size is None:
        sizes = {(height, width) for height, width, _ in found}
        photos.refuse_sizes(sizes)
        size = sizes.pop()
    return mode, (*size, 3 if mode == "RGB" else 1)


def _try(function, root, files, damaged):
    """(file, function(its path)) for each file; for one that fails, why goes into `damaged`."""
    def attempt(file):
        try:
            return function(root / file), None
        except MemoryError:
            raise
        except UnidentifiedImageError:
            return None, "not an image"
        except Exception as e:  # for damaged bytes Pillow raises more than a dozen kinds
            return None, reason(e)

    with ThreadPoolExecutor() as pool:
        results = tqdm(pool.map(attempt, files), "reading images", len(files), delay=1,
                       leave=False, disable=None)
        for file, (result, error) in zip(files, results, strict=True):
            if error:
                damaged[file] = error
            else:
                yield file, result


def _fill(split, loaded, classes):
    """Write (file, (pages, notes)) into a Split, in turn; all notes."""
    labels = []
    all_notes = set()
    for file, (pages, notes) in loaded:
        all_notes |= notes
        for number, page in enumerate(pages, 1):
            split.images[len(labels)] = page
            split.names.append(f"{file.as_posix()}#{number}" if len(pages) > 1 else file.as_posix())
            labels.append(classes[file])
    split.images = split.images[: len(labels)]
    if None not in labels:
        split.labels = np.array(labels)
    return all_notes
