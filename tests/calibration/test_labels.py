"""Classes of photos: lists in MLPerf's form, folders by class, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.labels import LabelledPhotos, folder_labels, listed_labels
from engines.preprocess import PREPROCESS, prepare, read_image

ROOT = Path("photos")


def paths(*names):
    return [ROOT / name for name in names]


def listing(tmp_path, text):
    path = tmp_path / "val_map.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_is_mlperfs(tmp_path):
    text = "ILSVRC2012_val_00000001.JPEG 65\n\nnot here.JPEG 3\nb/ILSVRC2012_val_00000002.JPEG\t970\na photo.jpg 7\n"
    photos = paths("ILSVRC2012_val_00000001.JPEG", "b/ILSVRC2012_val_00000002.JPEG", "a photo.jpg")
    assert listed_labels(listing(tmp_path, text), photos, ROOT) == dict(zip(photos, (65, 970, 7), strict=True))


def test_a_path_in_the_list_goes_before_a_bare_name(tmp_path):
    photos = paths("a/1.jpg", "b/1.jpg")
    text = "1.jpg 3\nb/1.jpg 4\n"
    assert list(listed_labels(listing(tmp_path, text), photos, ROOT).values()) == [3, 4]


@pytest.mark.parametrize("line", ["photo.jpg", "photo.jpg cat", "photo.jpg -1", "7", "photo.jpg 1.5", "photo.jpg ²"])
def test_a_line_of_another_form_is_named(tmp_path, line):
    with pytest.raises(CalibrationError, match=r"val_map.txt line 2 is .*, expected a name and a class"):
        listed_labels(listing(tmp_path, f"first.jpg 1\n{line}\n"), paths("first.jpg"), ROOT)


def test_a_photo_without_a_label_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"has no label for 'b.jpg' and 1 more"):
        listed_labels(listing(tmp_path, "a.jpg 1\n"), paths("a.jpg", "b.jpg", "c.jpg"), ROOT)
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        listed_labels(tmp_path / "gone.txt", paths("a.jpg"), ROOT)


def test_folders_are_classes_by_number_or_in_order():
    numbered = paths("281/a.jpg", "7/b.jpg", "7/deeper/c.jpg")
    assert list(folder_labels(numbered, ROOT, 1000).values()) == [281, 7, 7]
    named = paths("dog/a.jpg", "cat/b.jpg", "owl/c.jpg")
    assert list(folder_labels(named, ROOT, 3).values()) == [1, 0, 2]


@pytest.mark.parametrize(
    ("names", "classes"), [(("a.jpg", "b.jpg"), 10), (("cat/a.jpg", "b.jpg"), 1), (("cat/a.jpg", "dog/b.jpg"), 1000)]
)
def test_other_folders_say_nothing(names, classes):
    assert folder_labels(paths(*names), ROOT, classes) is None


def test_photos_keep_their_class_past_one_that_is_broken(tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{index}.png" for index in range(7)]
    for path in files:
        cv2.imwrite(str(path), rng.integers(0, 256, (240, 230, 3), dtype=np.uint8))
    files[2].write_bytes(b"no image")
    photos = LabelledPhotos(files, PREPROCESS["imagenet"], {path: index for index, path in enumerate(files)})
    for _ in range(2):  # each pass reads anew
        batches = list(photos)
        assert [batch.labels.tolist() for batch in batches] == [[0, 1, 3, 4], [5, 6]]
        assert [skipped.source for skipped in photos.skipped] == [str(files[2])]
        assert np.array_equal(batches[1].inputs[0], prepare(read_image(files[5]), PREPROCESS["imagenet"]))
    assert next(iter(LabelledPhotos(files, PREPROCESS["imagenet"], None))).labels is None


def test_photos_that_are_all_broken_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match="none of 1 images can be used"):
        list(LabelledPhotos([tmp_path / "a.png"], PREPROCESS["digits"], None))
