"""What the project says of itself agrees: environments, address, public names, documentation."""

import re
import subprocess
import tomllib
from pathlib import Path

import execute
import pytest
import yaml

import ssetools

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
ADDRESS = CONFIG["repository"]["url"]


def requirements():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return {r for group in groups for r in group if not r.startswith("ssetools[")}


def test_environment_yml_has_the_packages_of_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    assert {r for r in pip if not r.startswith("-")} == requirements()
    assert f"python{PROJECT['requires-python']}" in listed


def test_constraints_pin_every_requirement():
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    names = {re.split(r"[<>=\[ ]", r)[0] for r in requirements()}
    assert names <= pinned


def test_upper_bounds_are_only_where_there_is_a_reason():
    assert [r for r in requirements() if "<" in r] == ["jupyter-book>=1.0.4.post1,<2"]


@pytest.mark.parametrize("name", ["README.md", "CITATION.cff"])
def test_the_address_is_the_one_in_config(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    addresses = set(re.findall(r"https://(?:github\.com|colab\.research\.google\.com/github)/([\w.-]+/[\w.-]+)", text))
    owner_and_name = ADDRESS.removeprefix("https://github.com/")
    assert owner_and_name in addresses
    assert {a.removesuffix(".git") for a in addresses} <= {owner_and_name, "actions/checkout"}


def test_public_names_are_documented():
    api = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    for name in ssetools.__all__:
        assert re.search(rf"\b{name}\b", api), f"{name} is missing from book/api.md"
        thing = getattr(ssetools, name)
        assert not callable(thing) or thing.__doc__, f"{name} has no docstring"


def test_no_file_is_too_long():
    for folder in ("ssetools", "tests", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path


def test_the_readme_table_is_made_from_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert execute.with_results_table(readme) == readme
    assert "| Yoruba" in readme
    mixed = readme.replace("| Yoruba", "| Klingon").replace("kinship (r = ", "chance (r = ")
    mixed = mixed.replace("random neurons of the same layers", "no neurons")
    assert mixed.count("no neurons") == 1
    assert execute.with_results_table(mixed) == readme, "the table, the comparison and what the atlas found"


def test_the_file_tree_in_the_readme_is_complete():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "ssetools").glob("*.py"):
        assert path.name == "__init__.py" or f"ssetools/{path.name} " in readme, path.name


def test_the_package_starts_without_what_only_tasks_need():
    """Importing lm-eval takes longer than all the rest."""
    waiting, seen = ["__init__"], set()
    while waiting:
        seen.add(name := waiting.pop())
        text = (ROOT / "ssetools" / f"{name}.py").read_text(encoding="utf-8")
        imported = re.findall(r"^(?:from|import) ([\w.]+)", text, re.MULTILINE)
        assert not {"lm_eval", "sacrebleu", "pandas"} & {module.split(".")[0] for module in imported}, name
        inner = {module.partition(".")[2] for module in imported if module.startswith("ssetools.")}
        waiting += [module for module in inner - seen if (ROOT / "ssetools" / f"{module}.py").is_file()]
    assert "task_evaluation" in seen


def test_modules_import_only_what_stands_above_them():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    order = re.findall(r"^ssetools/(\w+)\.py ", readme, re.MULTILINE)
    for place, name in enumerate(order):
        text = (ROOT / "ssetools" / f"{name}.py").read_text(encoding="utf-8")
        for used in re.findall(r"^from ssetools\.(\w+) import", text, re.MULTILINE):
            assert used in order[:place], f"{name}.py imports {used}.py, which stands below it"
        for used in re.findall(r"^from ssetools import (.+)", text, re.MULTILINE):
            assert set(used.split(", ")) <= set(order[:place]), name


def test_a_clone_stays_small(tmp_path):
    shallow = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--is-shallow-repository"], capture_output=True, text=True
    )
    if shallow.stdout.strip() == "true":
        pytest.skip("this clone has no history to weigh: `git fetch --unshallow`")
    clone = tmp_path / "clone.git"
    command = ["git", "clone", "--quiet", "--bare", "--single-branch", "--no-local", str(ROOT), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["git", "-C", str(clone), "gc", "--quiet"], check=True)
    megabytes = sum(path.stat().st_size for path in clone.rglob("*.pack")) / 1e6
    assert 0 < megabytes < 60, f"{megabytes:.0f} MB: executed notebooks with smaller figures, or results elsewhere"
