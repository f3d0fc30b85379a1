"""A property that is worked out when somebody first asks for it.

functools.cached_property would do, but for a lock that before Python 3.12 all objects of a class share: while one
thread made the basis of its layer, the other one waited to make that of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functools import cached_property as once
else:

    class once:  # noqa: N801
        """`functools.cached_property` without a lock: two threads that ask one object at once both work it out."""

        def __init__(self, make: Callable[[Any], Any]) -> None:
            self.make, self.__doc__ = make, make.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = instance.__dict__[self.name] = self.make(instance)
            return value


__all__ = ["once"]
