"""The grammar of a verdict in words: how a generated answer must open to be read as 1 or as 2.

An answer is read only if it can hardly mean anything else. `1. Response 1 is vague ...` opens a numbered list,
`1 vs 2: 2 wins` names both, `1,000` is a number: none of them is a verdict, nor is anything in doubt.
"""

from __future__ import annotations

import re

from rlaif.labelers.templates import Polarity

_NOUN = r"(?:response|answer|summary|option|choice|verdict|text|output|completion)"
_PRAISE = r"(?:better|best|preferred|chosen|winning)"
_MARKDOWN = re.compile(r"\*|`|(?<!\w)_+|_+(?!\w)")
_END_MARK = re.compile(r"(?:<\|[\w ]+\|>|</s>|<end_of_turn>)+\s*$")
_NAMED = re.compile(rf"(?:the\s+)?{_NOUN}\s*(?:#|number\b)?\s*", re.IGNORECASE)
_DIGIT = re.compile(
    r"""(?:(?P<bare>[12])|\(\s*([12])\s*\)|\[\[?\s*([12])\s*\]\]?|\{\s*([12])\s*\}|\\boxed\{\s*([12])\s*\}
    |"\s*([12])\s*[.]?"|'\s*([12])\s*[.]?'|“\s*([12])\s*”|‘\s*([12])\s*’|<answer>\s*([12])\s*</answer>)""",
    re.VERBOSE,
)
_REASON = re.compile(r"(?:,|\s+[-–—])?\s+(?:because|since)\b(?P<reason>.*)", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:but|however|(?:al)?though|not|or|unless|neither|both|equal\w*|tied?|ties)\b|n't", re.IGNORECASE
)
_LISTED = re.compile(r"^[\s#\"'(\[]*\d+\s*(?:[.):\]]|$)", re.MULTILINE)


def _leads(praise: str, prefer: str) -> re.Pattern[str]:
    says = r"\s*(?:\bis\b\s*:?|[:=])\s*"
    return re.compile(
        rf"(?:(?:the|my)\s+)?(?:final\s+)?{praise}{_NOUN}(?:\s+number)?{says}{prefer}", re.IGNORECASE
    )


# A prompt that asks for the worse response is not answered by naming a better one.
_LEADS = {
    "better": _leads(rf"(?:{_PRAISE}\s+)?", r"|i\s+(?:would\s+)?(?:prefer|choose|pick|select)\s+"),
    "worse": _leads("", ""),
}
_IS_BETTER = {
    "better": re.compile(
        rf"\s+is\s+(?:clearly\s+|much\s+)?(?:the\s+)?{_PRAISE}(?:\s+(?:one|{_NOUN}))?"
        r"(?=\s*[.!]?\s*$|,?\s+(?:because|since)\b)",
        re.IGNORECASE,
    ),
    "worse": re.compile(r"(?!)"),
}


def verdict_of(text: str, *, polarity: Polarity, cut: bool) -> int | None:
    """1 or 2 if `text` opens with such a verdict, else None.

    `cut` says that the text ended at its length limit: its end may be the beginning of something else. Lines after
    the verdict's are not read, since they may quote the judged texts; if they continue a list, or explain what may
    have been a heading, there is no verdict.
    """
    line, _, rest = _END_MARK.sub("", _MARKDOWN.sub("", text)).strip().partition("\n")
    lead = _LEADS[polarity].match(line)
    start = lead.end() if lead else 0
    named = _NAMED.match(line, start)
    digit = _DIGIT.match(line, named.end() if named else start)
    if digit is None:
        return None
    verdict = next(group for group in digit.groups() if group)
    tail = line[digit.end() :].rstrip()
    praised = _IS_BETTER[polarity].match(tail)
    tail = tail[praised.end() :] if praised else tail
    if not _ends(tail, other="12"[verdict == "1"]) or _LISTED.search(rest):
        return None
    said = bool(lead or praised or tail.strip(" .!"))  # a sentence, not a number that may begin a list
    heading = bool(rest.strip()) and (bool(named) != (tail in (".", "!")))
    return int(verdict) if said or not (heading or (cut and not rest)) else None


def _ends(tail: str, *, other: str) -> bool:
    """Whether the verdict's line ends here, or continues with a reason that retracts nothing."""
    if tail.strip() in ("", ".", "!"):
        return True
    reason = _REASON.fullmatch(tail)
    return reason is not None and not _DOUBT.search(reason["reason"]) and other not in reason["reason"]
