"""What the project says of itself agrees: environments, address, public names, documentation."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import execute
import pytest
import yaml

import ssetools

ROOT = Path(__file__).resolve().parents[2]
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
    for name in set(ssetools.__all__) - {"loss"}:  # a module, documented by its functions
        assert re.search(rf"\b{name}\b", api), f"{name} is missing from book/api.md"
        thing = getattr(ssetools, name)
        assert not callable(thing) or thing.__doc__, f"{name} has no docstring"


def test_the_readme_table_is_made_from_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert execute.with_results(readme) == readme
    assert "| Yoruba" in readme
    mixed = readme.replace("| Yoruba", "| Klingon").replace("kinship (r = ", "chance (r = ")
    mixed = mixed.replace("random neurons of the same layers", "no neurons")
    assert mixed.count("no neurons") == 1
    assert execute.with_results(mixed) == readme, "the table, the comparison and what the atlas found"


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


PUBLIC_NAMES = [
    "CONTRAST_LANGUAGES",
    "METHODS",
    "PAPER_LANGUAGES",
    "TARGET_LANGUAGES",
    "ActivationProfile",
    "Alignment",
    "FFNBlock",
    "Language",
    "MemoryPlan",
    "NeuronSets",
    "Subnetwork",
    "TextStream",
    "TrainingResult",
    "TrainingSettings",
    "alignment",
    "amplified",
    "cache_dir",
    "compare_neurons",
    "deactivated",
    "drift",
    "evaluate",
    "find_ffn_blocks",
    "finetune",
    "get_language",
    "lape_entropy",
    "load_adapter",
    "load_atlas",
    "load_model",
    "load_parallel",
    "load_sharded",
    "load_texts",
    "pack_tokens",
    "perplexity",
    "plan_memory",
    "profile_languages",
    "run_dir",
    "sample_from_base",
    "score_languages",
    "score_texts",
    "select_neurons",
    "stream_texts",
    "weight_change",
]


def test_public_names_are_never_removed():
    assert set(PUBLIC_NAMES) <= set(ssetools.__all__)
    assert set(ssetools.__all__) <= set(dir(ssetools))
    assert callable(ssetools.loss.chunked_loss), "a module of the package is imported when it is used"


def test_a_misspelt_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="ssetools has no attribute load_modle|No ssetools attribute load_modle"):
        ssetools.load_modle  # noqa: B018


@pytest.mark.parametrize("command", ["import ssetools", "from ssetools import cli; cli.main(['--help'])"])
def test_the_package_and_the_help_text_load_without_pytorch(command):
    code = f"""
import sys
try:
    {command}
except SystemExit:
    pass
heavy = {{"torch", "transformers", "numpy", "lm_eval", "sacrebleu", "pandas", "matplotlib", "study"}}
print("loaded:", *sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_importing_every_public_name_leaves_out_what_only_tasks_and_figures_need():
    """Importing lm-eval takes longer than everything else together."""
    code = """
import sys
from ssetools import *
print("loaded:", *sorted({"lm_eval", "sacrebleu", "pandas", "matplotlib", "study"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "loaded:"


@pytest.fixture(scope="session")
def wheel_names(tmp_path_factory):
    """Names of all files in the wheel, built from a copy so that no build folder is left behind."""
    scratch = tmp_path_factory.mktemp("wheel")
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split("\0"):
        wanted = name.startswith(("ssetools/", "study/")) or "/" not in name
        if wanted and (ROOT / name).is_file():
            (scratch / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, scratch / "source" / name)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(scratch)],
        capture_output=True,
        text=True,
        cwd=scratch / "source",
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(scratch.glob("*.whl"))).namelist()


def test_the_wheel_holds_the_library_and_no_study(wheel_names):
    inside = {name for name in wheel_names if ".dist-info/" not in name}
    library = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ssetools").rglob("*") if p.is_file()}
    assert inside == {name for name in library if "__pycache__" not in name}
    assert {name.split("/")[0] for name in inside} == {"ssetools"}
