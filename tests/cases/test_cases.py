"""Every packet-case file in this folder, told to the specification and to the packet path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.model.subjects import ModelSubject, PathSubject
from tests.support.story import Story, play, read_story

CASES = sorted(Path(__file__).parent.glob("*.case"))


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def story(request: pytest.FixtureRequest) -> Story:
    return read_story(request.param)


def test_specification(story: Story) -> None:
    play(story, ModelSubject(story.settings))


def test_path(story: Story) -> None:
    play(story, PathSubject(story.settings))
