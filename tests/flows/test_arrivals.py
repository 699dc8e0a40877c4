"""Is anything new? A file counts once, when it is whole; nothing is read while nothing changed; what is odd is said."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from curation.errors import UserError
from curation.specs import Recipe
from flows import arrivals
from flows.arrivals import look, remember
from flows.recipe import load_recipe
from flows.run import recipe_hash
from storage.artifacts import Lake

RECIPE = """
format = 1
name = "t"
[[source]]
name = "pool"
path = "in/*.jsonl"
[[source]]
name = "far"
path = "hf://owner/name"
[[suite]]
name = "new"
path = "new.jsonl"
distribution = "ood"
use = "steer+judge"
"""


class Place:
    """A recipe, its folder and a lake; files are an hour old unless said otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lake, self.path = folder, Lake(folder / "lake"), folder / "r.toml"
        (folder / "in").mkdir()
        self.write("new.jsonl", "x")
        self.recipe("")

    def recipe(self, more: str) -> Recipe:
        self.path.write_text(RECIPE + more)
        return load_recipe(self.path)

    def write(self, name: str, text: str, age_seconds: float = 3600) -> Path:
        path = self.folder / name
        path.write_text(text)
        os.utime(path, (time.time() - age_seconds,) * 2)
        return path

    def look(self, keep: bool = True) -> arrivals.Look:
        recipe = load_recipe(self.path)
        found = look(self.lake, recipe, self.folder)
        if keep:
            remember(self.lake, recipe, found)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.write("in/a.jsonl", "1")
    return place


def test_a_new_file_counts_once(place):
    assert place.look(keep=False).new and place.look().new and not place.look().new
    place.write("in/b.jsonl", "2")
    found = place.look()
    assert found.new and "1 new (b.jsonl)" in found.says
    again = place.look()
    assert not again.new and again.says == "t: nothing new"


def test_nothing_is_read_while_nothing_changed(place, monkeypatch):
    place.look()
    place.write("in/b.jsonl", "2")
    read = []
    real = arrivals.file_hash
    monkeypatch.setattr(arrivals, "file_hash", lambda path: read.append(path.name) or real(path))
    place.look()
    place.look()
    assert read == ["b.jsonl"]


def test_a_look_that_led_to_no_run_is_taken_again(place):
    first = place.look(keep=False)
    assert place.look(keep=False).new and place.look(keep=False).content == first.content


@pytest.mark.parametrize(("age", "text", "says"), [(2, "2", "may still be written"), (3600, "", "is empty")])
def test_a_file_that_is_not_whole_waits(place, age, text, says):
    place.look()
    path = place.write("in/b.jsonl", text, age)
    found = place.look()
    assert not found.new and says in found.says and "b.jsonl" in found.says
    place.write(path.relative_to(place.folder).as_posix(), "2")
    assert place.look().new


def test_a_file_that_grows_during_the_look_waits(place, monkeypatch):
    def growing(path: Path) -> str:
        path.write_text("more and more")
        return "digest"

    monkeypatch.setattr(arrivals, "file_hash", growing)
    found = place.look()
    assert not found.new and "is being written" in found.says


def test_a_clock_that_was_set_back_blocks_nothing(place):
    place.write("in/b.jsonl", "2", age_seconds=-7200)
    assert place.look().new and not place.look().new


def test_changed_renamed_gone(place):
    for name in "bc":
        place.write(f"in/{name}.jsonl", name)
    place.look()
    place.write("in/a.jsonl", "other")
    assert "1 changed (a.jsonl)" in place.look().says
    (place.folder / "in/b.jsonl").rename(place.folder / "in/z.jsonl")
    moved = place.look()
    assert not moved.new and "1 renamed (z.jsonl)" in moved.says
    (place.folder / "in/z.jsonl").unlink()
    lost = place.look()
    assert lost.new and "1 gone, whose rows leave the pool (z.jsonl)" in lost.says
    (place.folder / "in/a.jsonl").touch()
    os.utime(place.folder / "in/a.jsonl", (1e9, 1e9))
    assert not place.look().new and place.look().says == "t: nothing new"


def test_a_source_that_is_gone_starts_nothing(place):
    place.look()
    shutil.rmtree(place.folder / "in")
    with pytest.raises(UserError, match=r"1 file\(s\) of the last look are gone.*no run was started"):
        place.look()


def test_a_folder_without_files_yet_is_no_error(tmp_path):
    found = Place(tmp_path).look()
    assert not found.new and "no file matches" in found.says


def test_a_file_that_cannot_be_read_is_named(place, monkeypatch):
    def denied(path: Path) -> str:
        raise UserError(f"{path}: Permission denied")

    monkeypatch.setattr(arrivals, "file_hash", denied)
    with pytest.raises(UserError, match=r"\.jsonl: Permission denied"):
        place.look()


def test_hostile_names_are_shown_not_obeyed(place):
    place.look()
    place.write("in/\x1b[31mred\n.jsonl", "2")
    assert "\x1b" not in place.look().says and "\n" not in place.look().says


def test_a_changed_recipe_is_new_and_a_changed_schedule_is_not(place):
    place.look()
    recipe = place.recipe("[schedule]\nwatch_minutes = 5\n")
    assert not place.look().new and recipe_hash(recipe) == recipe_hash(place.recipe(""))
    place.recipe("[budget]\nrows = 10\n")
    assert "recipe changed" in place.look().says and not place.look().new


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('cron = "60 3 * * *"', "'60' is no minute"),
        ('cron = "0 3 * *"', "cron has five fields"),
        ('cron = "5-2 * * * *"', "'5-2' is no minute"),
        ('cron = "0 3 * * 8"', "'8' is no weekday"),
        ('timezone = "UTC"', "timezone belongs to cron"),
        ('cron = "0 3 * * *"\ntimezone = "Europe/Nowhere"', "Europe/Nowhere"),
        ('cron = "0 3 * * *"\ninterval_minutes = 5', "not both"),
        ("interval_minutes = 0", "greater than or equal to 1"),
        ('crom = "0 3 * * *"', "did you mean 'cron'"),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_reason(place, line, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        place.recipe(f"[schedule]\n{line}\n")


def test_every_known_form_of_cron_is_taken(place):
    for cron in ("* * * * *", "*/5 0-23/2 1,15 1-12 0,7", "30 3 * * 1-5"):
        assert (
            place.recipe(f'[schedule]\ncron = "{cron}"\ntimezone = "Europe/Berlin"\n').schedule.cron == cron
        )
