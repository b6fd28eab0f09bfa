"""A guide's card records its files when it is written; whoever loads the guide hears of weights that are others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.tiny import tiny_module, write_lora
from trimtab import load_guide, save_guide
from trimtab.errors import CheckpointError
from trimtab.guides.sentences import Sentences
from trimtab.storage import recorded
from trimtab.storage.cards import GUIDE_FILE, change_card, read_card, write_card
from trimtab.storage.directories import locate_guide
from trimtab.storage.files import file_digest
from trimtab.storage.loading import load_policy, load_rewards
from trimtab.storage.scorers import load_reward_model

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    directory = write_lora(tmp_path / "guide", tiny_module(), seed=1)
    (directory / "README.md").write_text("words")
    write_card(directory, {"format": 1, "kind": "arm"})
    return directory


def _change(path: Path) -> None:
    """Another last byte, which no header tells."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_card_records_what_a_loader_may_read(guide: Path) -> None:
    written = json.loads((guide / GUIDE_FILE).read_text())["files"]
    assert sorted(written) == ["adapter_config.json", WEIGHTS]
    assert written[WEIGHTS] == {"sha256": file_digest(guide / WEIGHTS), "size": (guide / WEIGHTS).stat().st_size}
    assert recorded.differences(guide, read_card(guide).files) == []


def test_weights_that_are_others_are_refused_wherever_a_guide_is_loaded(guide: Path) -> None:
    _change(guide / WEIGHTS)
    for load in (locate_guide, load_guide, load_policy, load_rewards, load_reward_model):
        with pytest.raises(CheckpointError, match=rf"{WEIGHTS} .* not the file .*\"files\""):
            load(guide)


def test_weights_that_are_not_there_are_refused(guide: Path) -> None:
    (guide / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}.* is missing"):
        locate_guide(guide)


def test_settings_that_are_others_are_said_and_loaded(guide: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A base that has moved is written into `adapter_config.json` by hand, and nothing is wrong with that."""
    path = guide / "adapter_config.json"
    path.write_text(path.read_text() + "\n")
    with caplog.at_level(logging.WARNING, "trimtab"):
        load_guide(guide)
    assert [record.getMessage() for record in caplog.records if "adapter_config.json" in record.getMessage()]
    caplog.clear()
    load_guide(guide)
    assert caplog.records == [], "said once"


def test_a_card_without_digests_loads_as_before(guide: Path, caplog: pytest.LogCaptureFixture) -> None:
    (guide / GUIDE_FILE).write_text(json.dumps({"format": 1, "kind": "arm"}))
    _change(guide / WEIGHTS)
    with caplog.at_level(logging.DEBUG, "trimtab"):
        load_guide(guide)
    assert not [record for record in caplog.records if "files" in record.getMessage()]
    assert recorded.differences(guide, read_card(guide).files) == []


def test_what_takes_long_is_known_by_its_size_when_it_is_loaded(guide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "QUICK", 16)
    _change(guide / WEIGHTS)
    locate_guide(guide)
    assert [one.name for one in recorded.differences(guide, read_card(guide).files)] == [WEIGHTS]
    with (guide / WEIGHTS).open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match="bytes"):
        locate_guide(guide)


def test_a_card_that_is_changed_keeps_what_it_recorded(guide: Path) -> None:
    """A calibration is no reason to take weights for those that were trained."""
    before = read_card(guide).written["files"]
    _change(guide / WEIGHTS)
    change_card(guide, read_card(guide).with_form("shift"))
    assert read_card(guide).written["files"] == before
    (guide / GUIDE_FILE).write_text(json.dumps({"format": 1, "kind": "arm"}))
    change_card(guide, read_card(guide).with_form("shift"))
    assert "files" not in read_card(guide).written


def test_a_guide_that_is_saved_elsewhere_records_its_files_there(guide: Path, tmp_path: Path) -> None:
    saved = save_guide(load_guide(guide, form="shift"), tmp_path / "saved")
    card = read_card(saved)
    assert card.guide_form == "shift"
    assert sorted(card.files) == ["adapter_config.json", WEIGHTS]
    assert recorded.differences(saved, card.files) == []


def test_a_guide_made_of_sentences_has_no_files(tmp_path: Path) -> None:
    write_card(tmp_path, Sentences("Be kind.").facts())
    assert "files" not in read_card(tmp_path).written


@pytest.mark.parametrize(
    "files", [{"a.json": 3}, {"a.json": {"sha256": 3}}, {"../a.json": {"sha256": "0", "size": 1}}, 7]
)
def test_a_record_that_is_none_is_an_error_of_the_card(guide: Path, files: object) -> None:
    (guide / GUIDE_FILE).write_text(json.dumps({"format": 1, "kind": "arm", "files": files}))
    with pytest.raises(CheckpointError, match="files"):
        read_card(guide)


def test_every_guide_that_ships_records_its_files() -> None:
    shipped = sorted(path.parent for path in (Path(recorded.__file__).parents[1] / "shipped").glob(f"*/{GUIDE_FILE}"))
    assert shipped
    for directory in shipped:
        card = read_card(directory)
        assert card.files
        assert recorded.differences(directory, card.files) == []
