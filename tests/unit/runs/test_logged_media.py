from __future__ import annotations

import pytest

from milepost.core.events import MediaAdded, MediaStaged, Rewound
from milepost.runs.store import RunReader


def staged(step: int, source: str) -> MediaStaged:
    return MediaStaged(step=step, name="plot", source=source, form="image")


def added(step: int, path: str = "plot.png", source: str = "") -> MediaAdded:
    return MediaAdded(
        step=step,
        name="plot",
        path=path,
        media_type="image/png",
        size=3,
        form="image",
        caption="c",
        facts={"width": 2},
        source=source,
    )


def test_media_are_listed_by_the_time_at_which_they_were_handed_over(layout, direct):
    log, companion = direct(), direct(role="companion")
    for step in (1, 2):
        log.append(staged(step, f"s{step}"), step=step)
    for step in (2, 1):
        companion.append(added(step, f"{step}.png", f"s{step}"), step=step)
    items = RunReader(layout).media
    assert [(item.step, item.path) for item in items] == [(n, layout.media / f"{n}.png") for n in (1, 2)]
    assert (items[0].caption, items[0].facts, items[0].size, items[0].rank) == ("c", {"width": 2}, 3, 0)
    assert items[0].time < items[1].time


def test_what_a_resume_did_again_is_left_out_even_if_it_was_encoded_after_it(layout, direct):
    first = direct(attempt=1)
    for step in (5, 8):
        first.append(staged(step, f"first{step}"), step=step)
    second, companion = direct(attempt=2), direct(role="companion", attempt=2)
    second.append(Rewound(step=6), step=6)
    second.append(staged(8, "second8"), step=8)
    for source in ("first5", "first8", "second8"):
        companion.append(added(int(source[-1]), f"{source}.png", source), step=int(source[-1]))
    reader = RunReader(layout)
    assert [item.path.name for item in reader.media] == ["first5.png", "second8.png"]
    again = reader.history.media.items(layout.media, reader.history.rewinds, superseded=True)
    assert [item.path.name for item in again] == ["first8.png"]


@pytest.mark.parametrize("path", ["../metadata.json", "/etc/passwd", "a/../../x", "link", "a\0b", ""])
def test_a_path_that_leaves_the_folder_is_not_given_out(layout, direct, path):
    layout.media.mkdir()
    (layout.media / "link").symlink_to("/etc/passwd")
    log = direct()
    log.append(added(1, path), step=1)
    log.append(added(1, "inside.png"), step=1)
    assert [item.path.name for item in RunReader(layout).media] == ["inside.png"]
