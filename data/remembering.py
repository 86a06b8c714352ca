"""Answers kept in memory for objects that never change, and for files as long as they have not changed."""

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

Subject = TypeVar("Subject")
Rest = ParamSpec("Rest")
Answer = TypeVar("Answer")

Stamp = tuple[tuple[str, int, int, int], ...]


def remembered(
    size: int,
) -> Callable[[Callable[Concatenate[Subject, Rest], Answer]], Callable[Concatenate[Subject, Rest], Answer]]:
    """Decorates a function of an immutable object and hashable values: its last `size` answers are kept.

    The object is told by its identity: to hash a task by what it holds takes as long as most answers do. It
    is held with its answer, so that no other object can get its id.
    """

    def decorate(
        function: Callable[Concatenate[Subject, Rest], Answer],
    ) -> Callable[Concatenate[Subject, Rest], Answer]:
        held: OrderedDict[object, tuple[Subject, Answer]] = OrderedDict()

        @wraps(function)
        def answer(subject: Subject, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer:
            key = (id(subject), args, tuple(sorted(kwargs.items())))
            found = held.get(key)
            if found is None:
                found = held[key] = (subject, function(subject, *args, **kwargs))
                if len(held) > size:
                    held.popitem(last=False)
            return found[1]

        return answer

    return decorate


def stamp(*paths: Path) -> Stamp:
    """What changes when a file is written again: size, time of the last change and inode, of each path.

    The inode tells a file that took the place of one of the same size and time. Of a folder, of every file in
    it; nothing of a path that is not there.
    """
    files = (file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]))
    facts = ((str(file), file.stat()) for file in files if file.is_file())
    return tuple((name, found.st_size, found.st_mtime_ns, found.st_ino) for name, found in facts)
