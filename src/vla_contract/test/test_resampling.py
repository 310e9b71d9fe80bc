import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_contract.resampling import resize_image


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_halving_averages_the_covered_pixels(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (2 * height, 2 * width, 3), dtype=np.uint8)
    mean = image.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(image, height, width) - mean).max() <= 0.5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_a_plain_image_stays_plain(height, width, new_height, new_width, value):
    image = np.full((height, width, 3), value, dtype=np.uint8)
    resized = resize_image(image, new_height, new_width)
    assert resized.shape == (new_height, new_width, 3) and (resized == value).all()


def test_same_size_is_not_copied():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    assert resize_image(image, 4, 4) is image
