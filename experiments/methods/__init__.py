"""Continual-learning methods: how weights change from task to task, and what is kept between tasks.

One file a method; `method.py` says what each of them does around a training. A new one is a file here, with a
class that names itself, and a YAML file in `conf/method/`.
"""

from importlib import import_module
from pkgutil import iter_modules

from sapo.experiments.methods.method import METHODS, Context, Method, method_of

__all__ = ["METHODS", "Context", "Method", "method_of"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
