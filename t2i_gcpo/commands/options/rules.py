"""Rules of credit that are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from t2i_gcpo.algorithms import Algorithm, resolve
from t2i_gcpo.utils.yaml_files import Scalar


def read_rules(texts: Sequence[str], group_size: int) -> dict[str, Algorithm]:
    """Return the rules by their text; the first may be named once more.

    A text is a row of the algorithms' table, with other choices after a colon: gcpo:normalization=none,divergence=abs.
    ValueError: an unknown row or option, a repeated rule.
    """
    repeated = sorted({text for text in texts[1:] if texts[1:].count(text) > 1})
    if repeated:
        raise ValueError(f"--rules names {', '.join(repeated)} twice; name each rule once")
    rules = {}
    for text in dict.fromkeys(texts):
        name, _, options = text.partition(":")
        pairs = [pair.partition("=") for pair in options.split(",")] if options else []
        wrong = [key for key, equals, value in pairs if not (key and equals and value)]
        if wrong:
            raise ValueError(f"rule {text!r} is not ROW or ROW:option=value,option=value; look at {wrong[0]!r}")
        choices = {key.replace("-", "_"): Scalar(value).value for key, _, value in pairs}
        rules[text] = resolve(name, **{"group_size": group_size, **choices})
    return rules
