"""Names and tags."""

from __future__ import annotations

from milepost.trackers.tensorboard_tags import Tags


def test_a_name_is_its_tag_until_it_is_used_for_another_kind():
    tags = Tags({})
    assert tags.tag_and_first("weights", "scalar") == ("weights", True)
    assert tags.tag_and_first("weights", "scalar") == ("weights", False)
    assert tags.tag_and_first("weights", "histogram") == ("weights/histogram", True)
    assert tags.tag("weights/histogram", "scalar") == "weights/histogram/scalar"
    assert tags.tag("weights", "histogram") == "weights/histogram"


def test_what_is_known_makes_the_same_tags_again():
    tags = Tags({})
    tags.tag("a", "scalar")
    again = Tags(tags.known())
    assert again.tag("a", "text") == tags.tag("a", "text") == "a/text"
