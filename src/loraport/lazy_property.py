"""A cached property without the class-wide lock of `functools.cached_property` before Python 3.12.

That lock is shared by all objects of a class: while one thread computed the basis of its layer, the other would wait to
begin with its own. To be replaced by `cached_property` when Python 3.12 is the oldest version supported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # mypy knows how to type this one
    from functools import cached_property as lazy_property
else:

    class lazy_property:  # noqa: N801
        """A property computed at the first access; two threads that access one object at once both compute it."""

        def __init__(self, compute: Callable[[Any], Any]) -> None:
            self.compute, self.__doc__ = compute, compute.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            # Into __dict__, where the next access finds it first; this also works in a frozen dataclass.
            value = instance.__dict__[self.name] = self.compute(instance)
            return value


__all__ = ["lazy_property"]
