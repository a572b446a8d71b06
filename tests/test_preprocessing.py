"""What a network sees of a photo, against the recorded and the installed libraries."""

import importlib
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments import documents, preprocessing
from mobilenets_jax import published

RECORDED = np.load(preprocessing.RECORDED, allow_pickle=False)


@pytest.fixture(scope="module")
def pictures():
    return preprocessing.pictures()


@pytest.mark.parametrize("index", range(len(preprocessing.DISTINCT)))
def test_pixels_are_the_recorded_ones(pictures, index):
    key = preprocessing.DISTINCT[index]
    assert RECORDED["transforms"][index] == " ".join(key)
    assert RECORDED["pictures"].tolist() == list(pictures)
    how = published.preprocessing(*key)
    for column, (name, encoded) in enumerate(pictures.items()):
        image = preprocessing.ours(encoded, how)
        patch = image[preprocessing.PATCH, preprocessing.PATCH]
        np.testing.assert_array_equal(patch, RECORDED["patches"][index, column], err_msg=name)
        means = RECORDED["means"][index, column]
        np.testing.assert_allclose(image.mean((0, 1)), means, atol=1e-9, err_msg=name)
        assert zlib.crc32(image.tobytes()) == RECORDED["checksums"][index, column], name


def test_recorded_transforms_differ():
    checksums = RECORDED["checksums"]
    assert all(len(set(column)) == len(column) for column in checksums[:, :6].T.tolist())


@pytest.mark.parametrize("key", preprocessing.DISTINCT, ids=".".join)
def test_pixels_are_the_installed_librarys(pictures, key):
    try:
        importlib.import_module(key[0])
    except ImportError:
        pytest.skip(f"{key[0]} is not installed")
    how = published.preprocessing(*key)
    reference = preprocessing.theirs(*key, how)
    for name, encoded in pictures.items():
        result = preprocessing.compare(encoded, how, reference)
        assert result["max"] < 1e-3, name


def test_the_documents_table_is_of_the_stored_results():
    document = preprocessing.DOCUMENT.read_text(encoding="utf-8")
    stored = json.loads(preprocessing.RESULTS.read_text(encoding="utf-8"))
    table = preprocessing.table(stored)
    assert documents.replaced(document, "preprocessing", table) == document


def test_turned_is_what_pillow_reads():
    encoded = preprocessing.turned(preprocessing.pictures()["flower.jpg"], 6)
    assert Image.open(io.BytesIO(encoded)).getexif()[0x0112] == 6
