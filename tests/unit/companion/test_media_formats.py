from __future__ import annotations

import io
import json
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from milepost.companion.media_formats import Encoded, encode
from milepost.core.errors import CorruptDataError
from milepost.run.media_forms import Form, audio_of, histogram_of, images_of
from milepost.run.media_tables import plotly_of, table_of
from milepost.runs.staged import Staged


def encoded(form: Form) -> Encoded:
    """What the companion makes of what a call hands over."""
    data = b"".join(bytes(piece) for piece in form.data)
    facts = json.loads(json.dumps(form.facts))
    return encode(Staged(step=1, name="a", form=form.form, facts=facts), memoryview(data))


def pixels(image) -> np.ndarray:
    (form,) = images_of(image)
    with Image.open(io.BytesIO(encoded(form).content)) as opened:
        return np.asarray(opened)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(5, 9), st.integers(5, 9), st.sampled_from([1, 3, 4]))))
def test_uint8_comes_back_as_it_was_in_either_order_of_axes(image):
    wanted = image[:, :, 0] if image.shape[2] == 1 else image
    assert np.array_equal(pixels(image), wanted)
    assert np.array_equal(pixels(np.moveaxis(image, -1, 0)), wanted)
    assert np.array_equal(pixels(image[:, ::-1][:, ::-1]), wanted)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_scaled_rounded_and_cut_off_and_nan_is_black(kind):
    image = np.array([[0.0, 0.5, 1.0], [-3.0, 7.0, np.nan], [np.inf, -np.inf, 0.25]], kind)
    assert pixels(image).tolist() == [[0, 128, 255], [0, 255, 0], [255, 0, 64]]


def test_truth_values_are_black_and_white():
    assert pixels(np.array([[True, False]])).tolist() == [[255, 0]]


def test_where_both_orders_could_be_meant_a_tensor_has_its_channels_in_front():
    torch = pytest.importorskip("torch")
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert np.array_equal(pixels(image), image)
    assert np.array_equal(pixels(torch.from_numpy(image)), np.moveaxis(image, 0, -1))
    assert pixels(torch.full((3, 2, 4), 0.5, dtype=torch.bfloat16, requires_grad=True)).shape == (2, 4, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
def test_images_of_pillow_of_every_mode_are_taken(mode):
    image = Image.new("RGBA", (4, 3), (255, 0, 0, 255)).convert(mode)
    assert pixels(image).shape[:2] == (3, 4)


@given(
    arrays.arrays(np.float64, st.integers(0, 50), elements=st.floats(allow_nan=True, allow_infinity=True, width=64)),
    st.integers(1, 80),
)
def test_a_histogram_counts_every_finite_number_once_and_the_others_apart(values, bins):
    content = json.loads(encoded(histogram_of(values, bins)).content)
    finite = values[np.isfinite(values)]
    assert sum(content["counts"]) == content["count"] == len(finite)
    assert len(content["counts"]) == len(content["bin_edges"]) - 1 == bins
    apart = content["nan"] + content["positive_infinity"] + content["negative_infinity"]
    assert apart == len(values) - len(finite)
    assert content["min"] == (finite.min() if len(finite) else None)
    assert np.all(np.diff(content["bin_edges"]) > 0)


def test_a_histogram_takes_integers_lists_and_tensors():
    torch = pytest.importorskip("torch")
    for values in ([1, 2, 3, 4], np.arange(1, 5), torch.arange(1, 5), [[True, False], [False, False]]):
        content = json.loads(encoded(histogram_of(values, 4)).content)
        assert sum(content["counts"]) == 4
    assert content["sum"] == 1


def sound(samples, rate=8000) -> tuple[int, int, np.ndarray]:
    with wave.open(io.BytesIO(encoded(audio_of(samples, rate)).content)) as file:
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return file.getframerate(), file.getnchannels(), frames


def test_sound_keeps_its_rate_and_channels_in_either_order():
    assert [part.tolist() if isinstance(part, np.ndarray) else part for part in sound([0.0, 1.0, -2.0])] == [
        8000,
        1,
        [0, 32767, -32767],
    ]
    two = np.arange(8, dtype=np.int16).reshape(4, 2)
    for samples in (two, two.T):
        rate, channels, frames = sound(samples, 44_100)
        assert (rate, channels, frames.tolist()) == (44_100, 2, list(range(8)))


def test_a_table_is_strict_json_without_secrets_whatever_stands_in_its_cells():
    pandas = pytest.importorskip("pandas")
    rows = [[1, None, np.float32(0.5)], ["token=ghp_0123456789abcdefghijABCDEFGHIJ012345", True, float("inf")]]
    as_rows = json.loads(encoded(table_of(["a", "b", "c"], rows)).content)
    assert as_rows["rows"] == [[1, None, 0.5], ["token=[redacted]", True, "Infinity"]]
    columns = {"a": [1, 2], "b": ["x", {"inner": 1}]}
    assert json.loads(encoded(table_of(columns, None)).content) == {
        "columns": ["a", "b"],
        "rows": [[1, "x"], [2, {"inner": 1}]],
    }
    frame = pandas.DataFrame({"a": [1, 2], "b": [0.5, float("nan")]})
    assert json.loads(encoded(table_of(frame, None)).content)["rows"] == [[1, 0.5], [2, "NaN"]]


def test_a_figure_of_plotly_is_json_without_secrets_and_with_its_numbers_untouched():
    objects = pytest.importorskip("plotly.graph_objects")
    figure = objects.Figure(objects.Scatter(y=np.arange(200.0)), layout={"title": "api_key=abcdefgh12345678"})
    made = encoded(plotly_of(figure))
    content = json.loads(made.content)
    assert made.media_type == "application/vnd.plotly.v1+json"
    assert content["layout"]["title"]["text"] == "api_key=[redacted]"
    assert content["data"][0]["y"] == json.loads(figure.to_json())["data"][0]["y"]


def test_data_that_does_not_fit_its_description_is_damage_and_no_fault_of_ours():
    for form in ("image", "histogram", "audio", "unheard-of"):
        with pytest.raises(CorruptDataError):
            encode(Staged(step=1, name="a", form=form, facts={"dtype": "<f4", "shape": [3]}), memoryview(b"123"))
