"""Removes run-specific details from executed notebooks, and finds outputs that should not be published."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator

from nbformat import NotebookNode

KEPT_METADATA = ("tags", "mystnb")  # mystnb: a figure's text alternative
# Details of one machine or one run; each is cut such that the rest of the sentence stays complete.
_RUN_DETAILS = [
    (re.compile(r"[^\n]*\r(?!\n)"), ""),  # an overwritten line: progress bars
    (re.compile(r" +\d+ tokens/s"), ""),
    (re.compile(r"sib200:[^\s'\",]+"), "sib200"),
    (re.compile(r", [\d.]+ minutes, [\d.]+ GiB"), ""),
    (re.compile(r"\bT_[0-9a-f]{5}(?=[_\"])"), "T_table"),  # pandas gives each styled table a random name
]
# What an output must not contain.
FAULTS = {
    "a traceback": re.compile(r"Traceback \(most recent call last\)"),
    "a warning": re.compile(r"\b[A-Z]\w*Warning\b"),
    "a carriage return": re.compile(r"\r"),
    "a terminal's colour code": re.compile(r"\x1b\["),
    "a progress bar": re.compile(r"\d%\|[ #\u2588-\u258f]|\b(?:it/s|s/it)\b"),
    "a widget stub": re.compile(r"jupyter\.widget|\b(?:[HV]Box|(?:Float|Int)Progress)\(|\bOutput\(\)"),
    "the text representation of a figure": re.compile(r"(?:<|&lt;)(?:Figure size|Axes:|AxesSubplot)"),
    "a memory address": re.compile(r"\bat 0x[0-9a-f]{6,}"),
    "a path of one machine": re.compile(
        r"(?<![\w.])/(?:home|root|Users|tmp|mnt|opt|data|content|work|workspace|var/folders)/\w"
    ),
}


def faults(text: str) -> list[str]:
    """Lists what an output must not contain, each with the text that was found."""
    matches = {name: pattern.search(text) for name, pattern in FAULTS.items()}
    return [f"{name}: {text[m.start() : m.start() + 60]!r}" for name, m in matches.items() if m]


def without_run_details(text: str, runs: str) -> str:
    """Removes from a text what differs from machine to machine and from run to run."""
    text = text.replace(f"{runs.rstrip('/')}/", "runs/")
    for pattern, replacement in _RUN_DETAILS:
        text = pattern.sub(replacement, text)
    return text


def without_noise(notebook: NotebookNode, runs: str = "runs") -> NotebookNode:
    """Returns the notebook as it is committed: of the metadata, only tags and figure options are left.

    Injected parameters, standard error, widgets and the text representation of figures are removed; consecutive prints are
    one output; cells are numbered as if papermill had injected none.
    """
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    kept = {k: v for k, v in notebook.metadata.items() if k == "kernelspec"}
    notebook.metadata = NotebookNode({**kept, "language_info": {"name": "python"}})
    executed = 0
    for number, cell in enumerate(notebook.cells):
        cell["id"] = str(number)
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in KEPT_METADATA and v})
        if cell.cell_type == "code":
            if cell.execution_count is not None:
                cell.execution_count = executed = executed + 1
            cell.outputs = _clean_outputs(cell.outputs, runs)
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = cell.execution_count
    return notebook


def _clean_outputs(outputs: list[NotebookNode], runs: str) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif output.output_type != "error":
            pictures = any(kind.startswith("image/") for kind in output.data)
            for kind in list(output.data):
                if "jupyter.widget" in kind or (pictures and kind == "text/plain"):
                    del output.data[kind]
            if not output.data:
                continue
            output.data |= {k: without_run_details(v, runs) for k, v in output.data.items() if k.startswith("text/")}
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = without_run_details(output.text, runs)
    return kept


def code_digest(notebook: NotebookNode) -> str:
    """Returns a digest of all code, which tells whether a page that is its own source has changed since its execution."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def problems(notebook: NotebookNode) -> list[str]:
    """Lists the problems of an executed notebook: cells that were not executed or lack an output, errors, and noise."""
    problems, last = [], 0
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        where = f"cell {number} ({cell.source.strip().splitlines()[-1][:50]!r})"
        if cell.execution_count is None:
            problems.append(f"{where} was not executed")
            continue
        if cell.execution_count <= last:
            problems.append(f"{where} ran out of order: {cell.execution_count} after {last}")
        last = cell.execution_count
        shown = set()
        for output in cell.outputs:
            shown |= set(_kinds(output))
            if output.output_type == "error":
                problems.append(f"{where} ended in {output.ename}: {output.evalue[:80]}")
            if output.get("name") == "stderr":
                problems.append(f"{where} shows standard error: {output.text[:60]!r}")
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            problems += [f"{where} shows {fault}" for text in texts for fault in faults(text)]
            problems += [f"{where} shows a widget stub: {kind}" for kind in output.get("data", {}) if "widget" in kind]
        if missing := expected_outputs(cell.source) - shown:
            problems.append(f"{where} lacks its output: {', '.join(sorted(missing))}")
    return problems


def _kinds(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "stream":
        yield "text"
    elif output.output_type == "execute_result":
        yield "value"
    if any(kind.startswith("image/") for kind in output.get("data", {})):
        yield "figure"


def output_kinds(cell: NotebookNode) -> list[str]:
    """Returns the kinds of a cell's outputs in order: "text", "value", "figure" or "error"."""
    return [kind for output in cell.outputs for kind in (list(_kinds(output)) or [output.output_type])]


def expected_outputs(source: str) -> set[str]:
    """Returns the outputs that a cell's code certainly has: "text", "figure", or the "value" of its last line.

    They follow from a `print` outside any `if`, from the idiom `_ = plots...(...)`, and from a last expression that is not
    a call (a call may return None).
    """
    lines = [re.sub(r"^( *)[%!].*", r"\1pass", line) for line in source.splitlines()]
    body = ast.parse("\n".join(lines)).body
    expected = set()
    for node in _unconditional(body):
        call = node.value if isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call) else None
        called = ast.unparse(call.func) if call else ""
        if called == "print" and isinstance(node, ast.Expr):
            expected.add("text")
        if called.startswith("plots") and isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_":
            expected.add("figure")
    last = body[-1] if body else None
    suppressed = source.rstrip().endswith(";")
    if isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call) and not suppressed:
        expected.add("value")
    return expected


def _unconditional(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.For | ast.With):
            yield from _unconditional(node.body)
