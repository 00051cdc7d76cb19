"""Each fault of images with texts, planted into sound data, is found once, in its place, and nothing else is said."""

import pytest

from tests.planted_texts import BROUGHT_ALONG, PLANTS, TextPlant, sound, write
from visiontune.data.inspect import inspect
from visiontune.data.prepare import prepare


def test_sound_data_have_no_fault(tmp_path):
    assert inspect(write(tmp_path, sound(tmp_path))).faults == []


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_fault_is_found_in_its_place(tmp_path, plant: TextPlant):
    rows = sound(tmp_path)
    more = plant.plant(tmp_path, rows) or []
    source = write(tmp_path, rows, *more)
    told = inspect(source)
    (hit,) = [fault for fault in told.faults if fault.code == plant.code]
    assert (hit.severity, plant.where in hit.where) == (plant.severity, True)
    assert hit.found and hit.fix
    assert {fault.code for fault in told.faults} <= {plant.code, BROUGHT_ALONG.get(plant.name, plant.code)}
    listed = len(rows) + len(more)
    assert told.samples == listed - sum(fault.severity in ("drop", "error") for fault in told.faults), (
        "rows are counted"
    )


def test_a_row_that_is_left_out_is_listed_in_the_dataset(tmp_path):
    rows = sound(tmp_path)
    rows[3]["messages"][0]["role"] = "narrator"
    dataset = prepare(write(tmp_path, rows), tmp_path.with_name("out"), workers=1)
    assert [(row.id, row.code) for row in dataset.info.left_out] == [("rows.jsonl, line 4", "unknown-role")]
