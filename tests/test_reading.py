"""What people have and how it is read: photographs, folders, arrays and archives as they come, each in a small form."""

import gzip
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image, ImageOps, features
from test_cli import run

from minivae.errors import UserError
from minivae.images import data, photos, summary


def im(rng, height=8, width=8, channels=3):
    return rng.integers(0, 256, (height, width, channels)[: 3 if channels > 1 else 2], np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def load(path, **options):
    return data.load(str(path), None, **options)


def everything(dataset):
    """All images of a data set that was held out from one, in the order in which they were read."""
    count = len(dataset.train.images) + len(dataset.test.images)
    order = np.random.RandomState(0).permutation(count)
    images = np.concatenate([dataset.test.images, dataset.train.images])
    names = (dataset.test.names or []) + (dataset.train.names or [])
    found = np.empty_like(images)
    found[order] = images
    return found, [names[i] for i in np.argsort(order)] if names else None


def refused(source, *words, **options):
    with pytest.raises(UserError) as e:
        load(source, **options)
    assert all(word in str(e.value) for word in words), e.value
    assert "\n" not in str(e.value)


def notes(dataset, word):
    return [note for note in dataset.notes if word in note]


# photographs


@pytest.mark.parametrize("shapes, side", [
    ([(60 + i, 80) for i in range(12)], 56), ([(218, 178)] * 12, 64), ([(28, 20)] * 12, 16),
])
def test_photos_of_any_size(tmp_path, rng, shapes, side):
    """The error names the very option that reads them: the largest centred crop, scaled."""
    for i, (height, width) in enumerate(shapes):
        save(tmp_path / f"{i:02}.png", im(rng, height, width))
    refused(tmp_path, f"train with --size {side} to have them cropped and scaled to {side}x{side}")
    images, names = everything(load(tmp_path, size=(side, side)))
    assert images.shape == (12, side, side, 3) and names == [f"{i:02}.png" for i in range(12)]
    with Image.open(tmp_path / "03.png") as image:
        expected = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images[3], expected)


def test_nothing_more_is_read_after_an_error(tmp_path, rng, monkeypatch):
    """Not the other thousands of photographs, when the first two have two sizes."""
    looked_at = []

    def read(file, size, read=photos.read):
        looked_at.append(file)
        time.sleep(0.01)
        return read(file, size)

    monkeypatch.setattr(photos, "read", read)
    for i in range(300):
        save(tmp_path / f"{i:03}.png", np.zeros((8, 8 + 8 * i), np.uint8))
    refused(tmp_path, "several sizes")
    count = len(looked_at)
    time.sleep(0.1)
    assert count == len(looked_at) < 150


def test_size_is_height_by_width(tmp_path, rng):
    wide = im(rng, 40, 100)
    for i in range(10):
        save(tmp_path / f"{i}.png", wide)
    images, _ = everything(load(tmp_path, size=[8, 16]))
    assert images.shape == (10, 8, 16, 3)
    crop = Image.fromarray(wide[:, 10:90]).resize((16, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images[0, :, 3:-3], np.asarray(crop)[:, 3:-3])  # edges see what is beyond them


def test_arrays_are_scaled_too(tmp_path, rng):
    """Grey 28x28 is then scaled, not padded; images that have the size already stay as they are."""
    grey = rng.integers(0, 256, (20, 28, 28), np.uint8)
    np.savez(tmp_path / "a.npz", images=grey)
    found = load(tmp_path / "a.npz", size=(16, 16))
    images, _ = everything(found)
    expected = Image.fromarray(grey[4]).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images[4, ..., 0], expected)
    assert not notes(found, "padded")
    images, _ = everything(load(tmp_path / "a.npz", size=(28, 28)))
    np.testing.assert_array_equal(images[:, 2:-2, 2:-2, 0], grey)


def test_exif_turns_are_made(tmp_path, rng):
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:32] = 255
    for i in range(12):
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 2 else 1
        stored = upright if i % 2 == 0 else np.rot90(upright)
        for suffix in ("jpg", "tif"):
            save(tmp_path / suffix / f"{i:02}.{suffix}", stored, exif=exif)
    for suffix in ("jpg", "tif"):
        images, _ = everything(load(tmp_path / suffix))
        assert images.shape == (12, 64, 32, 3)
        assert images[:, :24].min() > 240 and images[:, 40:].max() < 15
        images, _ = everything(load(tmp_path / suffix, size=(16, 8)))
        assert images[:, :6].min() > 240


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(tmp_path, mode):
    """A black drawing on nothing; opaque pixels keep their colour, and it is said once."""
    drawing = np.zeros((16, 16, 4), np.uint8)
    drawing[4:8, 4:8, 3] = 255
    for i in range(12):
        image = Image.fromarray(drawing)
        if mode == "P":
            image = image.convert("RGB").quantize(2)
            image.putdata((1 - drawing[..., 3].ravel() // 255).tolist())
            image.putpalette([0, 0, 0, 0, 0, 0])
            image.save(tmp_path / f"{i:02}.png", transparency=1)
        else:
            image.convert(mode).save(tmp_path / f"{i:02}.png")
    found = load(tmp_path)
    images, _ = everything(found)
    np.testing.assert_array_equal(images[5, ..., 0] == 0, drawing[..., 3] == 255)
    assert set(np.unique(images)) == {0, 255}
    assert images.shape[3] == (1 if mode == "LA" else 3)
    assert len(notes(found, "laid over white")) == 1


def test_opaque_alpha_is_nothing_to_speak_of(tmp_path, rng):
    pixels = rng.integers(0, 256, (16, 16, 4), np.uint8)
    pixels[..., 3] = 255
    for i in range(10):
        save(tmp_path / f"{i}.png", pixels)
    found = load(tmp_path)
    np.testing.assert_array_equal(found.train.images[0], pixels[..., :3])
    assert not notes(found, "white")


def test_grey_among_colour_is_colour(tmp_path, rng):
    grey = im(rng, channels=1)
    colour = im(rng)
    save(tmp_path / "00.png", grey)
    for i in range(1, 13):
        save(tmp_path / f"{i:02}.png", colour)
    images, _ = everything(load(tmp_path))
    np.testing.assert_array_equal(images[0], grey[..., None].repeat(3, 2))
    np.testing.assert_array_equal(images[12], colour)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_said(tmp_path, suffix):
    levels = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    for i in range(10):
        save(tmp_path / f"{i}.{suffix}", levels)
    found = load(tmp_path)
    np.testing.assert_array_equal(found.train.images[0, ..., 0], np.round(levels / 65535 * 255))
    assert len(notes(found, "65535 becomes 255")) == 1


def test_float_tiff_is_scaled_by_the_range_of_all(tmp_path):
    """Not file by file: a dark image stays dark. What the filter overshoots is cut off."""
    for i in range(10):
        save(tmp_path / f"{i}.tif", np.full((32, 32), i / 9, np.float32) * np.eye(32, dtype=np.float32))
    found = load(tmp_path)
    images, _ = everything(found)
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.round(np.arange(10) / 9 * 255))
    assert notes(found, "float32 pixels from 0 to 1 are taken to be on a scale from 0 to 1")
    edge = np.zeros((32, 32), np.float32)
    edge[:, 9:20] = 1
    save(tmp_path / "edge.tif", edge)
    found = load(tmp_path, size=(24, 24))
    assert notes(found, "float32 pixels from 0 to 1 are")
    assert everything(found)[0][10].max() == 255
    save(tmp_path / "byte.tif", np.zeros((32, 32), np.uint8))
    refused(tmp_path, "some of its images have floating-point pixels and others have not")


def test_all_pages_are_images(tmp_path, rng):
    """Of a TIFF and a GIF, in a folder or alone; they are named by their number."""
    pages = [Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)) for i in range(10)]
    for name, count in (("scan.tif", 10), ("film.gif", 5)):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:count])
    images, names = everything(load(tmp_path))
    assert len(images) == 15 and names[:5] == [f"film.gif#{i}" for i in range(1, 6)] and names[14] == "scan.tif#10"
    np.testing.assert_array_equal(images[5:, 0, 0, 0], 20 * np.arange(10))
    images, _ = everything(load(tmp_path / "scan.tif"))
    np.testing.assert_array_equal(images[:, 0, 0, 0], 20 * np.arange(10))


def test_previews_behind_a_photo_are_not_images(tmp_path, rng):
    photo = Image.fromarray(im(rng, 16, 16))
    for i in range(10):
        photo.save(tmp_path / f"{i}.jpg", "MPO", save_all=True, append_images=[photo.resize((8, 8))])
    images, names = everything(load(tmp_path))
    assert images.shape == (10, 16, 16, 3) and names[0] == "0.jpg"


@pytest.mark.parametrize("suffix", ["jfif", "JPG", "Png", "TIFF", "avif"])
def test_suffixes(tmp_path, rng, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot read AVIF")
    for i in range(10):
        save(tmp_path / f"{i}.{suffix}", im(rng))
    assert load(tmp_path).train.images.shape == (9, 8, 8, 3)


# folders


def pictures(rng, folder, count, suffix="png"):
    found = [im(rng) for _ in range(count)]
    for i, pixels in enumerate(found):
        save(folder / f"{i:02}.{suffix}", pixels)
    return np.array(found)


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "TEST"), ("train", "val"), ("train", "valid")])
@pytest.mark.parametrize("inside", ["", "photos"])
def test_splits_are_those_of_the_folders(tmp_path, rng, names, inside):
    train = pictures(rng, tmp_path / inside / names[0], 14)
    test = pictures(rng, tmp_path / inside / names[1], 3)
    found = load(tmp_path)
    np.testing.assert_array_equal(found.train.images, train)
    np.testing.assert_array_equal(found.test.images, test)
    assert found.train.names[0] == (Path(inside) / names[0] / "00.png").as_posix()
    assert found.train.labels is None and not notes(found, "held out")
    images, _ = everything(load(tmp_path / inside / names[0]))
    np.testing.assert_array_equal(images, train)


def test_splits_with_classes(tmp_path, rng):
    """Labels are numbered over both splits; what is validated on is not tested on, and said."""
    for split, classes in (("train", ("dog", "cat")), ("val", ("cat",)), ("test", ("dog", "emu"))):
        for name in classes:
            pictures(rng, tmp_path / split / name / "more", 6)
    found = load(tmp_path)
    assert found.train.label_names == ["cat", "dog", "emu"]
    np.testing.assert_array_equal(found.train.labels, [0] * 6 + [1] * 6)
    np.testing.assert_array_equal(found.test.labels, [1] * 6 + [2] * 6)
    assert found.train.labels.dtype == np.int64
    assert notes(found, "6 images in val/cat/more and the like are in neither the training nor the test folder")


def test_a_test_folder_without_a_training_folder(tmp_path, rng):
    pictures(rng, tmp_path / "test", 3)
    pictures(rng, tmp_path / "other", 12)
    refused(tmp_path, "none in a folder named train")


def test_class_folders_and_links_to_them(tmp_path, rng):
    pictures(rng, tmp_path / "data" / "b", 10)
    pictures(rng, tmp_path / "elsewhere", 10)
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "round").symlink_to(tmp_path / "data")
    found = load(tmp_path / "data")
    assert found.train.label_names == ["a", "b"]
    _, names = everything(found)
    assert names == [f"{c}/{i:02}.png" for c in "ab" for i in range(10)]
    assert [name[0] for name in found.train.names] == ["ab"[label] for label in found.train.labels]


def test_images_beside_masks(tmp_path, rng):
    pictures(rng, tmp_path / "images", 10)
    pictures(rng, tmp_path / "masks", 10)
    refused(tmp_path, "images/ and masks/ hold files of the same names", "give one of the two")
    assert len(load(tmp_path / "images").train.images) == 9


def test_hidden_files_and_folders(tmp_path, rng):
    expected = pictures(rng, tmp_path, 12)
    pictures(rng, tmp_path / ".ipynb_checkpoints", 12)
    (tmp_path / "._00.png").write_bytes(b"\0\5\26\7AppleDouble")
    images, names = everything(load(tmp_path))
    np.testing.assert_array_equal(images, expected)
    assert not any(name.startswith(".") for name in names)


def test_damaged_files_are_named_at_once(tmp_path, rng):
    """A truncated JPEG, a page that says it is missing, and an empty file."""
    pictures(rng, tmp_path, 14)
    save(tmp_path / "a.jpg", im(rng), quality=100)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-100])
    (tmp_path / "b.jpg").write_text("<html>404</html>")
    (tmp_path / "c.png").write_bytes(b"")
    words = ["3 of 17 image files cannot be read", "a.jpg (image file is truncated", "b.jpg (not an image)",
             "c.png (not an image)"]
    refused(tmp_path, *words, "add --skip-damaged")
    found = load(tmp_path, skip_damaged=True)
    assert all(notes(found, word) for word in words) and notes(found, "they are left out")
    images, names = everything(found)
    assert len(images) == 14 and names == [f"{i:02}.png" for i in range(14)]
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"")
    refused(tmp_path, "17 of 17 image files", skip_damaged=True)


def test_iphone_photos_are_not_passed_over(tmp_path, rng):
    pictures(rng, tmp_path, 12)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    refused(tmp_path, "1 of 13 image files cannot be read: a.HEIC")


@pytest.mark.parametrize("kind", ["zip", "ZIP", "tar", "tar.gz", "tgz"])
def test_archives(tmp_path, rng, kind):
    train = pictures(rng, tmp_path / "photos" / "train", 12)
    test = pictures(rng, tmp_path / "photos" / "test", 4)
    save(tmp_path / "__MACOSX" / "photos" / "._00.png", im(rng))
    path = tmp_path / f"photos.{kind}"
    if kind.lower() == "zip":
        with zipfile.ZipFile(path, "w") as f:
            for file in (*tmp_path.glob("*/train/*"), *tmp_path.glob("*/test/*"), *tmp_path.glob("__*/*/*")):
                f.write(file, file.relative_to(tmp_path))
    else:
        with tarfile.open(path, "w:gz" if "g" in kind else "w") as f:
            for name in ("photos", "__MACOSX"):
                f.add(tmp_path / name, name)
    found = load(path)
    np.testing.assert_array_equal(found.train.images, train)
    np.testing.assert_array_equal(found.test.images, test)
    assert found.test.names[3] == "photos/test/03.png"
    path.write_bytes(path.read_bytes()[:1000])
    refused(path, path.name)


def test_errors_in_an_archive_name_it(tmp_path, rng):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as f:
        f.writestr("photos/a.png", b"")
    refused(tmp_path / "a.zip", f"{tmp_path}/a.zip: 1 of 1 image files cannot be read: photos/a.png")
    save(tmp_path / "a.png", im(rng))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as f:
        f.write(tmp_path / "a.png", "a.png")
    refused(tmp_path / "a.zip", f"{tmp_path}/a.zip holds 1 images; at least 10 are needed")


def test_nothing_leaves_an_archive(tmp_path, rng):
    content = io.BytesIO()
    Image.fromarray(im(rng)).save(content, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as f:
        member = tarfile.TarInfo("../escaped.png")
        member.size = len(content.getvalue())
        f.addfile(member, io.BytesIO(content.getvalue()))
    refused(tmp_path / "a.tar", "outside the destination")


# arrays


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (40, 8, 8, 3), np.uint8)


def write(path, arrays):
    """Arrays by their names in an .npz or .h5."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return
    with h5py.File(path, "w") as f:
        for name, array in arrays.items():
            f[name] = array


@pytest.mark.parametrize("name", ["arr_0", "X", "imgs", "images", "Images"])
@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_the_only_array_of_images(tmp_path, images, name, kind):
    write(tmp_path / f"a.{kind}", {name: images, "y": np.arange(40), "classes": np.zeros((40, 6), int)})
    found = load(tmp_path / f"a.{kind}")
    np.testing.assert_array_equal(everything(found)[0], images)
    assert (found.train.labels is None) == (name.lower() == "images")  # which has labels of its own name
    write(tmp_path / f"a.{kind}", {name: images, "y": np.arange(3)})
    assert load(tmp_path / f"a.{kind}").train.labels is None
    write(tmp_path / f"a.{kind}", {"a": images, "b": images})
    refused(tmp_path / f"a.{kind}", "it holds a, b; name its images train and test, or images")


def test_npy_and_suffixes_in_capitals(tmp_path, images):
    np.save(tmp_path / "a.npy", images)
    write(tmp_path / "b.npz", {"images": images})
    write(tmp_path / "c.h5", {"images": images, "labels": np.arange(40)})
    for name in ("a.npy", "b.npz", "c.h5"):
        shutil.copy(tmp_path / name, tmp_path / f"capitals{Path(name).suffix.upper()}")
        for path in (tmp_path / name, tmp_path / f"capitals{Path(name).suffix.upper()}"):
            np.testing.assert_array_equal(everything(load(path))[0], images)


def test_a_home_is_expanded(tmp_path, images, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", images)
    assert len(load("~/a.npy").train.images) == 36


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_labels_in_other_forms(tmp_path, images, kind):
    """(N, 1) and one-hot; texts in both splits; factors are left out and said."""
    path = tmp_path / f"a.{kind}"
    classes = np.arange(40) % 4
    for labels in (classes[:, None], np.eye(4)[classes], np.eye(4, dtype=bool)[classes], classes.astype(np.float32)):
        write(path, {"x_train": images, "y_train": labels})
        found = load(path)
        assert sorted(np.concatenate([found.train.labels, found.test.labels])) == sorted(classes)
        assert found.train.labels.dtype == np.int64 and found.train.label_names is None
    texts = np.array(["dog", "cat", "gnu", "emu"], "S" if kind == "h5" else "U")
    write(path, {"x_train": images, "y_train": texts[classes], "x_test": images[:2], "y_test": texts[[3, 2]][:, None]})
    found = load(path)
    assert found.train.label_names == ["cat", "dog", "emu", "gnu"]
    np.testing.assert_array_equal(found.train.labels, np.array([1, 0, 3, 2])[classes])
    np.testing.assert_array_equal(found.test.labels, [2, 3])
    for labels in (np.zeros((40, 5)), np.full((40, 5), 0.2), *(np.full(40, value) for value in (0.5, np.nan, np.inf))):
        write(path, {"x_train": images, "y_train": labels})
        found = load(path)
        assert found.train.labels is None
        assert notes(found, f"labels of shape {labels.shape} and type float64 name no classes and are left out")


def test_channels_first(tmp_path, images):
    for turned in (images.transpose(0, 3, 1, 2), images[..., :1].transpose(0, 3, 1, 2)):
        np.save(tmp_path / "a.npy", turned)
        found = load(tmp_path / "a.npy")
        np.testing.assert_array_equal(everything(found)[0], images[..., : turned.shape[1]])
        assert notes(found, f"images of shape {turned.shape} are taken to be (N, C, H, W)")


@pytest.mark.parametrize("low, high", [(0, 255), (-1, 1), (0, 1)])
def test_floats_by_their_range(tmp_path, images, low, high):
    """One scale for both splits, though the test images alone would suggest another."""
    test = np.array([images[0] // 2 + 128])
    scaled = [(x / 255 * (high - low) + low).astype(np.float32) for x in (images, test)]
    np.savez(tmp_path / "a.npz", train=scaled[0], test=scaled[1])
    found = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.train.images, images)
    np.testing.assert_array_equal(found.test.images, test)
    assert notes(found, f"are taken to be on a scale from {low} to {high}")
    np.save(tmp_path / "a.npy", 3 * scaled[0] + 300)
    refused(tmp_path / "a.npy", "save them from 0 to 1 or from -1 to 1 or from 0 to 255")


def test_uint16_by_its_range(tmp_path):
    """Unless no pixel is above 255, as if bytes had been widened."""
    levels = np.tile(np.arange(256, dtype=np.uint16), 10).reshape(10, 16, 16)
    for factor, said in ((257, 1), (1, 0)):
        np.save(tmp_path / "a.npy", levels * factor)
        found = load(tmp_path / "a.npy")
        np.testing.assert_array_equal(found.train.images[0, ..., 0], levels[0])
        assert len(notes(found, "uint16 pixels from 0 to 65535 are taken to be on a scale from 0 to 65535")) == said


def test_bools_are_black_and_white(tmp_path, images):
    np.save(tmp_path / "a.npy", images > 127)
    np.testing.assert_array_equal(everything(load(tmp_path / "a.npy"))[0], 255 * (images > 127))


def test_idx(tmp_path, rng):
    """MNIST's pair packed or not, alone, and the folder of four, in which a file may be there packed as well."""
    images = rng.integers(0, 256, (30, 28, 28), np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 10

    def idx(array, kind=8):
        return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()

    pair = tmp_path / "pair"
    pair.mkdir()
    path = pair / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(images)))
    (pair / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    found = load(path)
    np.testing.assert_array_equal(everything(found)[0][:, 2:-2, 2:-2, 0], images)
    assert len(found.train.labels) == 27
    for kind, dtype in ((11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")):
        path.write_bytes(idx(images.astype(dtype), kind))
        np.testing.assert_array_equal(everything(load(path))[0][:, 2:-2, 2:-2, 0], images)
    four = tmp_path / "four"
    four.mkdir()
    for split, rows in (("train", slice(20)), ("t10k", slice(20, 30))):
        (four / f"{split}-images-idx3-ubyte").write_bytes(idx(images[rows]))
        (four / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[rows])))
        (four / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[rows])))
    (four / "._t10k-images-idx3-ubyte").write_bytes(b"AppleDouble")
    found = load(four)
    np.testing.assert_array_equal(found.train.images[:, 2:-2, 2:-2, 0], images[:20])
    np.testing.assert_array_equal(found.test.images[:, 2:-2, 2:-2, 0], images[20:])
    np.testing.assert_array_equal(found.test.labels, labels[20:])
    for content in (b"", idx(images)[:100], b"\0\0\7\3" + bytes(100), gzip.compress(idx(images))[:50]):
        path.write_bytes(content)
        refused(path, f"{path} cannot be read")
    (four / "emnist-train-images-idx3-ubyte").write_bytes(idx(images))
    refused(four, "one idx3 file of training images", "emnist-train-images-idx3-ubyte")


def mat73(path, x, y):
    """SVHN's layout as MATLAB writes version 7.3: HDF5 behind 512 bytes, the dimensions from last to first."""
    with h5py.File(path, "w", userblock_size=512) as f:
        f["X"] = x.transpose(0, 3, 2, 1)
        f["y"] = y[None]
        f.create_group("#refs#")


def test_mat(tmp_path, images):
    """In version 7.3 as in the older ones; one file alone; a folder without the test file."""
    labels = np.arange(40) % 10 + 1
    old, new = tmp_path / "old" / "train_32x32.mat", tmp_path / "new" / "train_32x32.mat"
    for path in (old, new):
        path.parent.mkdir()
    scipy.io.savemat(old, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
    mat73(new, images, labels)
    shutil.copy(new, tmp_path / "alone.MAT")
    for path in (old, new, old.parent, new.parent, tmp_path / "alone.MAT"):
        found = load(path)
        np.testing.assert_array_equal(everything(found)[0], images)
        np.testing.assert_array_equal(np.bincount(found.train.labels) + np.bincount(found.test.labels, minlength=10), 4)
    with h5py.File(new, "w") as f:
        f["Z"] = 0
    refused(new, "it holds Z, not X and y")


def converted(command):
    """Run the shell's command that an error ends with."""
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)


def test_a_csv_says_what_converts_it(tmp_path, rng):
    """Kaggle's digits; a folder's name may need quotes."""
    path = tmp_path / "it's mine" / "train.csv"
    path.parent.mkdir()
    rows = np.column_stack([np.arange(20) % 10, rng.integers(0, 256, (20, 784))])
    np.savetxt(path, rows, "%d", ",", header="label,pixel0", comments="")
    with pytest.raises(UserError, match="this converts it: ") as e:
        load(path)
    converted(str(e.value).split("this converts it: ")[1])
    found = load(Path(f"{path}.npz"))
    np.testing.assert_array_equal(everything(found)[0][:, 2:-2, 2:-2, 0].reshape(20, -1), rows[:, 1:])
    assert len(found.train.labels) == 18


@pytest.mark.parametrize("train, test, key", [
    ([f"data_batch_{i}" for i in range(1, 6)], "test_batch", b"labels"), (["train"], "test", b"fine_labels"),
])
def test_cifar_says_what_converts_it(tmp_path, rng, train, test, key):
    folder = tmp_path / "download" / "cifar"
    folder.mkdir(parents=True)
    rows = rng.integers(0, 256, (6, 3072), np.uint8)
    for name in (*train, test):
        (folder / name).write_bytes(pickle.dumps({b"data": rows, key: [3] * 6}))
    (folder / "meta").write_bytes(b"")
    for source in (folder.parent, folder):
        with pytest.raises(UserError, match="CIFAR's pickles, which could run any program.*this converts them: ") as e:
            load(source)
    converted(str(e.value).split("this converts them: ")[1])
    found = load(Path(f"{folder}.npz"))
    np.testing.assert_array_equal(found.train.images[:6], rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert len(found.train.images) == 6 * len(train) and found.test.labels.tolist() == [3] * 6


# what is said


def test_the_summary(tmp_path, rng):
    for name, count in (("cat", 12), ("dog", 8)):
        pictures(rng, tmp_path / "pets" / name, count)
    found = load(tmp_path / "pets")
    images = found.train.images
    assert found.summary == (f"pets: 18 training and 2 test images of 8x8x3, uint8, pixels from {images.min()} to "
                             f"{images.max()} with mean {images.mean():.1f}, 2 labels: cat, dog")


def test_warnings_of_images_that_may_be_meant_otherwise(tmp_path, images):
    dark = (images[..., 0] > 127).astype(np.uint8)
    sparse = np.where(np.arange(64).reshape(8, 8, 1) < 2, images, 7)
    for content, word in ((dark, "no pixel of the images is above 1"),
                          (sparse, "of the pixels of the images are 7"), (images, None)):
        np.save(tmp_path / "a.npy", content)
        warned = notes(load(tmp_path / "a.npy"), "warning: ")
        assert len(warned) == (word is not None) and (word or "") in "".join(warned)
    np.save(tmp_path / "a.npy", np.zeros_like(images))
    warned, _ = notes(load(tmp_path / "a.npy"), "warning: ")  # the other is of copies
    assert warned == "warning: no pixel of the images is above 0, so all are black"


def test_copies_are_named(tmp_path, rng):
    pictures(rng, tmp_path, 10)
    for i in range(10):
        shutil.copy(tmp_path / f"{i:02}.png", tmp_path / f"copy{i:02}.png")
    shutil.copy(tmp_path / "00.png", tmp_path / "copy10.png")
    found = load(tmp_path)
    assert notes(found, "11 of the images are copies of others: copy00.png = 00.png, copy01.png = 01.png")
    assert notes(found, "copy09.png = 09.png and 1 more")


def test_no_copy_of_a_held_out_image_is_trained_on(tmp_path, images):
    np.save(tmp_path / "a.npy", np.concatenate([images, images]))
    found = load(tmp_path / "a.npy")
    assert not set(data.hashes(found.test.images)) & set(data.hashes(found.train.images))
    assert len(data.unseen(found.test.images, found.train.images)) == len(found.test.images) / 2
    assert notes(found, f"no test split: {len(found.test.images)} of {2 * len(images)} images")
    np.save(tmp_path / "a.npy", np.zeros_like(images))
    assert len(load(tmp_path / "a.npy").test.images) == len(images) // 10  # all are copies: no way to keep them apart


def test_streamed_images_are_described_by_some(tmp_path, images, monkeypatch):
    data.write_hdf5(tmp_path / "a.h5", "test", [("train", images, None), ("test", images, None)])
    monkeypatch.setattr("minivae.images.stream.memory", lambda: 1000)
    monkeypatch.setattr(summary, "SAMPLED", 20)
    found = load(tmp_path / "a.h5")
    assert f"mean {images[::2].mean():.1f}" in found.summary
    refused(tmp_path / "a.h5", "cannot be scaled", size=(16, 16))
    assert load(tmp_path / "a.h5", size=(8, 8)).train.sha256 == found.train.sha256


# in commands


def test_photographs_are_trained_on_and_resumed(tmp_path, rng):
    """24 of 24 sizes, one of them damaged since: what the run was given, every later command takes too."""
    for i in range(24):
        save(tmp_path / "photos" / f"{i:02}.jpg", im(rng, 40 + i, 64 - i))
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    done = run("--data", "photos", "--skip-damaged", "--steps", 1, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2 and "train with --size 40 to have them" in done.stderr
    done = run("--data", "photos", "--size", 32, "--steps", 1, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2 and "1 of 25 image files cannot be read: a.jpg (not an image)" in done.stderr
    done = run("--data", "photos", "--size", "32x16", "--skip-damaged", "--steps", 2, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "photos: 22 training and 2 test images of 32x16x3, uint8, pixels from " in done.stdout
    assert "no labels; batches of 22\n" in done.stdout and "they are left out\n" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["size"] == [32, 16] and config["skip_damaged"] is True and config["batch_size"] == 22
    done = run("resume", "run", "--steps", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run("reconstruct", "run", cwd=tmp_path).returncode == 0


def test_data_that_moved(tmp_path, images):
    """Any command is told where they are now; resume keeps it; other images are refused."""
    np.save(tmp_path / "old.npy", images)
    assert run("--data", "old.npy", "--steps", 1, "--out", "run", cwd=tmp_path).returncode == 0
    (tmp_path / "old.npy").rename(tmp_path / "new.npy")
    done = run("reconstruct", "run", cwd=tmp_path)
    assert done.returncode == 2 and "--data" in done.stderr and "old.npy: No such file" in done.stderr
    for command in ("reconstruct", "interpolate"):
        assert run(command, "run", "--data", "new.npy", cwd=tmp_path).returncode == 0
    assert run("resume", "run", "--steps", 2, "--data", "new.npy", cwd=tmp_path).returncode == 0
    assert run("reconstruct", "run", cwd=tmp_path).returncode == 0
    np.save(tmp_path / "other.npy", images + 1)
    done = run("resume", "run", "--steps", 3, "--data", "other.npy", cwd=tmp_path)
    assert done.returncode == 2 and "other.npy holds other images than run was trained on" in done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == str(tmp_path / "new.npy")


@pytest.mark.parametrize("text", ["33", "0", "32x", "x32", "32x33", "-8", "a", "8x8x8", ""])
def test_sizes_that_no_model_takes(tmp_path, text):
    done = run(f"--size={text}", cwd=tmp_path)
    assert done.returncode == 2 and "is not a side or HEIGHTxWIDTH, in pixels that 8 divides" in done.stderr
