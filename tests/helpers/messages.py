"""Say what an error message must tell, and leave its wording free."""

from __future__ import annotations

import re


def names(*facts: object) -> str:
    """A pattern for `pytest.raises(match=...)`.

    The message names all of the facts, in any order and whatever stands between.
    """
    if not facts:
        raise ValueError("a pattern without facts would match any message")
    return "(?s)" + "".join(f"(?=.*{re.escape(str(fact))})" for fact in facts)
