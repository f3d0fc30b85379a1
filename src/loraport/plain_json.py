"""JSON that every reader accepts: how results, reports and metadata are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, **layout: Any) -> str:
    """Return the value as JSON. JSON has no infinities: they are the text "inf" or "-inf", and NaN is null.

    `layout` is what `json.dumps` takes: indent, sort_keys, ensure_ascii.
    """
    return json.dumps(_finite(value), allow_nan=False, **layout)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
