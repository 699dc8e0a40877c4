"""Text as rows keep it, and the looser keys by which duplicates and contamination are found."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_LAST_PUNCTUATION = 0x1FFFF  # no punctuation is assigned above
_INVISIBLE = re.compile("[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
_JOINERS = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(
    "[ \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]{2,}|[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
)
_LINE_ENDS = re.compile("[ \t]*\n[ \t]*")
_ANSWER_ENDS = " .,;:!?\"'\u2018\u2019\u201c\u201d"


def normalize(text: str) -> str:
    """The text in NFC with LF line ends, no invisible or control characters, single spaces, lines trimmed.

    Tabs inside lines and line breaks stay; the joiners U+200C and U+200D stay between letters that are not
    ASCII (Persian, Indic scripts, emoji); lone surrogates become U+FFFD.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", _LONE_SURROGATES.sub("\ufffd", text))
        text = _JOINERS.sub("", _INVISIBLE.sub("", text))
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _SPACES.sub(" ", _CONTROL.sub("", text))
    return _LINE_ENDS.sub("\n", text).strip()


@cache
def _punctuation() -> dict[int, None]:
    marks = (i for i in range(_LAST_PUNCTUATION) if unicodedata.category(chr(i)).startswith("P"))
    return dict.fromkeys([*marks, 0x200C, 0x200D])


def _folded(text: str) -> str:
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def match_key(text: str) -> str:
    """The text casefolded, without punctuation, words one space apart; symbols such as + < = $ stay.

    A text of punctuation alone keeps it, so that `!!!` and `-` differ.
    """
    folded = _folded(text)
    return " ".join(folded.translate(_punctuation()).split()) or " ".join(folded.split())


def answer_key(text: str) -> str:
    """The answer casefolded, words one space apart, outer punctuation off; inner punctuation stays.

    Stricter than `match_key`, because `- a b` and `/ a b` are different answers.
    """
    folded = " ".join(_folded(text).split())
    return folded.strip(_ANSWER_ENDS) or folded
