"""What every notebook starts with: parameters checked in the first cell, with a sentence that names valid values."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ssetools.errors import InvalidInput
from ssetools.languages import get_language
from ssetools.training.methods import check_method

_IPYTHON_NAMES = {"In", "Out", "exit", "quit", "open", "get_ipython", "check_parameters"}


def check_parameters(namespace: Mapping[str, Any], **parameters: Any) -> None:
    """Checks a notebook's parameters before anything is computed.

    Args:
        namespace: `globals()` of the notebook, to find misspelt parameters: papermill injects them as variables
            that nobody reads.
        **parameters: The notebook's parameters by name. `lang`, `languages` (codes separated by spaces), `method`,
            and numbers are checked for their values, all others for their presence.

    Raises:
        ValueError: Naming the parameter and the valid values.
    """
    for name, value in namespace.items():
        strange = name.startswith("_") or name in parameters or name in _IPYTHON_NAMES
        if strange or isinstance(value, ModuleType) or inspect.isroutine(value):
            continue
        near = difflib.get_close_matches(name, parameters, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"Unknown parameter {name!r}.{hint} This notebook has: {', '.join(parameters)}.")
    if "lang" in parameters:
        get_language(parameters["lang"])
    for code in str(parameters.get("languages", "")).split():
        get_language(code)
    check_method(parameters.get("method", "lape"))
    for name, value in parameters.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise InvalidInput(f"{name} cannot be negative; got {value}.")
