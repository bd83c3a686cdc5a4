"""Where the pictures of predictions go."""

import pytest

from kdjax.experiment import ExperimentError
from kdjax.experiment.predict import _places


def test_files_of_one_name_are_drawn_apart_and_nothing_is_written_over(tmp_path):
    files = ["a/1.png", "b/1.png", "b/2.png"]
    found = _places(files, tmp_path)
    assert [place.name for place in found] == ["1-1.png.found.png", "2-1.png.found.png", "3-2.png.found.png"]
    found[2].touch()
    with pytest.raises(ExperimentError, match=r"3-2\.png\.found\.png exists"):
        _places(files, tmp_path)
    assert _places(files, None) == []
