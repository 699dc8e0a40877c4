"""A pool of CLINC-150 requests and suites of the same 23 intents, from CLINC-150 and from HWU64.

Pool: the official train rows of 26 CLINC intents under 23 shared labels. Suites: `id` their validation and
test rows, `ood` the HWU64 requests that other people made for another assistant; a tenth of each, by content
hash, is `sealed` instead (`corpus` says which is which). HWU64 text is what the user typed
(`answer_from_user`), with slot brackets taken off (`[date : tomorrow]` becomes `tomorrow`).

Left out: requests of calendar_set and calendar_remove that speak of reminders (CLINC has an intent of its own
for them), missing answers (`null`), and HWU64 requests that repeat one of `id` or of their own, in lower case
and without punctuation. The label map is exact. The rules for HWU64 text and reminders were recovered by
comparing a converted copy with parts of four published intents (alarm_set, calendar_set, calendar_remove,
iot_hue_lighton), so elsewhere a few rows may differ between the two forms of the source.
Data: Larson et al. 2019, CC BY 3.0; Liu et al. 2019, CC BY 4.0.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

from prepare_common import Item, MissingSource, by_content, is_local, main, need, read_copy, shuffled

HELP = (
    "clone https://github.com/clinc/oos-eval and https://github.com/xliuhw/NLU-Evaluation-Data into one "
    "folder, then: python infra/recipes/prepare_intents_transfer.py --source FOLDER"
)
SEALED_SHARE = 0.1
# label: (CLINC-150 intents, HWU64 intents)
LABELS: dict[str, tuple[str, str]] = {
    "affirm": ("yes", "general_affirm"),
    "alarm_set": ("alarm", "alarm_set"),
    "calendar_query": ("calendar", "calendar_query"),
    "calendar_update": ("calendar_update", "calendar_remove calendar_set"),
    "cancel": ("cancel", "general_commandstop"),
    "datetime_query": ("date time", "datetime_query"),
    "definition": ("definition", "qa_definition"),
    "exchange_rate": ("exchange_rate", "qa_currency"),
    "joke": ("tell_joke", "general_joke"),
    "lists_query": ("shopping_list todo_list", "lists_query"),
    "lists_update": ("shopping_list_update todo_list_update", "lists_createoradd lists_remove"),
    "maths": ("calculator", "qa_maths"),
    "negate": ("no", "general_negate"),
    "play_music": ("play_music", "play_music"),
    "recipe": ("recipe", "cooking_recipe"),
    "repeat": ("repeat", "general_repeat"),
    "smart_home": (
        "smart_home",
        "iot_hue_lightchange iot_hue_lightdim iot_hue_lightoff iot_hue_lighton iot_hue_lightup "
        "iot_wemo_off iot_wemo_on",
    ),
    "song_query": ("what_song", "music_query"),
    "taxi": ("uber", "transport_taxi"),
    "timezone": ("timezone", "datetime_convert"),
    "traffic": ("traffic", "transport_traffic"),
    "volume": ("change_volume", "audio_volume_down audio_volume_mute audio_volume_up"),
    "weather": ("weather", "weather_query"),
}
CLINC = {intent: label for label, (clinc, _) in LABELS.items() for intent in clinc.split()}
HWU64 = {intent: label for label, (_, hwu64) in LABELS.items() for intent in hwu64.split()}
WITHOUT_REMINDERS = ("calendar_set", "calendar_remove")
SLOT = re.compile(r"\[[^\[\]:]+ : ([^\[\]]*)\]")


def item(text: str, label: str, intent: str, corpus: str) -> Item:
    return {"text": text, "label": label, "intent": intent, "corpus": corpus}


def load(source: Path) -> tuple[list[Item], list[Item], list[Item]]:
    """Train, ID and OOD rows; HWU64 rows as published, before those left out are."""
    if is_local(source):
        splits = {name: read_copy(source, name) for name in ("train", "id_dev", "id_test", "ood_test__hwu64")}
        train, dev, test, ood = (
            [item(r["text"], r["label"], json.loads(r["meta"])["orig_label"], r["domain"]) for r in rows]
            for rows in splits.values()
        )
        return train, dev + test, ood
    path = next(
        (p for p in (source / "oos-eval" / "data", source / "data") if p.is_dir()),
        source / "oos-eval" / "data",
    )
    full = json.loads(need(path / "data_full.json", HELP).read_text(encoding="utf-8"))
    train, dev, test = (
        [item(text, CLINC[intent], intent, "clinc150") for text, intent in full[split] if intent in CLINC]
        for split in ("train", "val", "test")
    )
    return train, dev + test, load_hwu64(source)


def load_hwu64(source: Path) -> list[Item]:
    """HWU64 requests of the first fold, train and test files together."""
    pattern = "CrossValidation/autoGeneFromRealAnno/*/CrossValidation/KFold_1"
    fold = next(
        (p for root in (source / "NLU-Evaluation-Data", source) for p in sorted(root.glob(pattern))), None
    )
    if fold is None:
        raise MissingSource(f"{source / 'NLU-Evaluation-Data' / pattern} is missing: {HELP}")
    rows = []
    for intent, label in sorted(HWU64.items()):
        for folder in (fold / "trainset", fold / "testset" / "csv"):
            path = need(folder / f"{intent}.csv", HELP)
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                answers = [record["answer_from_user"] or "" for record in csv.DictReader(file, delimiter=";")]
            rows += [item(SLOT.sub(r"\1", answer).strip(), label, intent, "hwu64") for answer in answers]
    return rows


def plain(text: str) -> str:
    """The text by which copies are found: lower case, words only."""
    return " ".join(re.findall(r"\w+", text.lower()))


def usable(ood: list[Item], ids: list[Item]) -> list[Item]:
    """The HWU64 rows that the suites keep."""
    seen = {plain(row["text"]) for row in ids}
    kept = []
    for row in by_content(ood):
        reminder = row["intent"] in WITHOUT_REMINDERS and "remind" in row["text"].lower()
        if row["text"] in ("", "null") or reminder or plain(row["text"]) in seen:
            continue
        seen.add(plain(row["text"]))
        kept.append(row)
    return kept


def prepare(source: Path, seed: int) -> dict[str, list[Item]]:
    """Rows of each file by its stem."""
    train, ids, ood = load(source)
    files: dict[str, list[Item]] = {"pool": train, "sealed": []}
    for stem, rows in (("id", ids), ("ood", usable(ood, ids))):
        ordered = shuffled(seed, stem, rows)
        cut = round(SEALED_SHARE * len(ordered))
        files["sealed"] += ordered[:cut]
        files[stem] = ordered[cut:]
    return {stem: by_content(files[stem]) for stem in ("pool", "id", "ood", "sealed")}


if __name__ == "__main__":
    sys.exit(main("intents_transfer", (__doc__ or "").splitlines()[0], prepare))
