"""Which image of a request the media connector is asked for."""

from qwen_vqa.serving.requests.content_checks import PlacedImage
from qwen_vqa.serving.requests.request_images import PART_CHARACTERS, RequestImages


def test_urls_of_one_length_that_end_alike_are_told_apart():
    first, second = (f"data:image/png;base64,{letter}{'A' * PART_CHARACTERS}" for letter in "BC")
    images = RequestImages([PlacedImage(first, "one"), PlacedImage(second, "two"), PlacedImage(first, "three")])
    assert [images.place_of(url).place for url in (second, first, first)] == ["two", "one", "three"]
    assert images.place_of(second).place == "image"  # asked for once more than the request has it
