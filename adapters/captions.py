"""Caption cleaning as LlamaGen's text-conditional models were trained with (it comes from DeepFloyd IF and PixArt).

This file knows strings. It does not know any tokenizer or model.

The original leans on two packages that this project does without, so two things are expressed otherwise:

* ``ftfy.fix_text`` also repairs text that was decoded in a wrong encoding ("â€™" for an apostrophe); that repair is
  left out. What ftfy does to rightly decoded text is done here: composed characters, full-width forms and ligatures
  as plain letters, straight quotes, no control characters.
* BeautifulSoup's text is taken with ``html.parser``, which is what it stands on. Only markup that is broken in unusual
  ways can come out differently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from html.entities import html5
from html.parser import HTMLParser
from unicodedata import normalize
from urllib.parse import unquote_plus

Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_SITE = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_START = r"(?:/{1,3}|[a-zA-Z0-9%])"
_FORMAT = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

LINKS = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:{_START}|{_SITE})", ""),
    (rf"\b(?:www:{_START}|{_SITE})", ""),
)
"""What goes before markup is read, in lower case."""

SYMBOLS = _rules(
    (r"@\w+\b", ""),
    ("[\u31c0-\u9fff]+", ""),  # CJK strokes, enclosed and compatibility forms, hexagrams, ideographs
    (
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32"
        "\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # addresses of machines
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a backslash and an n
    (r"#(?:\d{5,}|\d{1,3})\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FORMAT}", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    ("[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~()\\[\\]{}|\\\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
"""Names, foreign scripts and punctuation, after markup."""

PHRASES = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article numbers of three shapes
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FORMAT}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),  # sizes: Latin x, Cyrillic kha, multiplication sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
"""What web pages write around pictures, and the edges."""

_JOINT = re.compile("[-_]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")
_WIDE = re.compile("[\uff01-\uffef\u3000\ufb00-\ufb06\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3]+")
_SINGLE, _DOUBLE = re.compile("[\u02bc\u2018-\u201b]"), re.compile("[\u201c-\u201f]")


def clean_caption(caption: str) -> str:
    """A caption as LlamaGen's encoder reads it: lower case, no links, markup, article numbers or odd punctuation.

    The original cleans twice, since removing one thing can uncover another; so does this.
    """
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    caption = _apply(LINKS, unquote_plus(caption).strip().lower())
    caption = _apply(SYMBOLS, plain_text(caption))
    if len(_JOINT.findall(caption)) > 3:  # words-joined-like-this-one
        caption = _JOINT.sub(" ", caption)
    caption = unescape(unescape(fix_characters(caption))).strip()
    return _apply(PHRASES, caption).strip()


def _apply(rules: Sequence[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def fix_characters(text: str) -> str:
    """One character for one meaning, as ftfy does for text that was decoded rightly; see the module's docstring."""
    text = _WIDE.sub(lambda found: normalize("NFKC", found[0]), text)
    text = _SINGLE.sub("'", _DOUBLE.sub('"', text))
    return normalize("NFC", _CONTROL.sub("", text))


class _Text(HTMLParser):
    """Collects what a page would show; scripts, styles and templates show nothing."""

    HIDDEN = ("script", "style", "template")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HIDDEN:
            self.hidden.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            self.hidden.remove(tag)

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)

    def handle_charref(self, name: str) -> None:
        self.handle_data(unescape(f"&#{name};"))

    def handle_entityref(self, name: str) -> None:
        self.handle_data(html5.get(f"{name};", f"&{name}"))

    def unknown_decl(self, data: str) -> None:
        if data.lower().startswith("cdata["):
            self.handle_data(data[len("cdata[") :])


def plain_text(markup: str) -> str:
    """The text of a piece of HTML; all of it where it begins a marked section that HTML does not have."""
    parser = _Text()
    try:
        parser.feed(markup)
        parser.close()
    except AssertionError:  # html.parser's word for "<![" before something else than CDATA and the like
        return markup
    return "".join(parser.parts)
