"""The command line. Each command performs one step for one model, and reuses the files of earlier steps."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ssetools
from ssetools.errors import UserError
from ssetools.files import read_json, run_dir
from ssetools.languages import LANGUAGES, get_language
from ssetools.text.embedded import EMBEDDED_MODEL
from ssetools.text.sources import default_source, languages_in, plan_texts

_DESCRIPTION = "Make a language model better at one language by training only the neurons that fire for it."
_EPILOG = (
    "Every command reuses the files that earlier commands left in --runs. `ssetools finetune yo`, `ssetools evaluate yo` "
    "and `ssetools export yo FOLDER` are a complete example; `ssetools COMMAND --help` lists the options of a command."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 if the reader of the output closed it; 2 after an error that the user can fix, which is
        printed as one sentence; 130 if the user interrupted. Any other error is a fault of the program, and is raised.
    """
    arguments = _parser().parse_args(argv)
    try:
        is_main = os.environ.get("RANK", "0") == "0"  # set by torchrun and accelerate
        with contextlib.nullcontext() if is_main else contextlib.redirect_stdout(io.StringIO()):
            arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe, as in `ssetools languages | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:  # OSError: a file, the disk or the network
        print(f"ssetools: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ssetools: interrupted. The same command continues from the files that are finished.", file=sys.stderr)
        return 130
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _scale(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


# --- the parser ---

_TEXT: dict[str, Any] = {"metavar": "TEXT"}
_RATE: dict[str, Any] = {"type": float, "metavar": "RATE"}
_COUNT: dict[str, Any] = {"type": _positive, "metavar": "N"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "code": {"nargs": "?", "help": "language code, for example yo"},
    "lang": {"help": "language code, for example yo; `ssetools languages` lists all"},
    "--model": {"default": EMBEDDED_MODEL, "help": "a Hugging Face id, a local folder, or the model of the package"},
    "--runs": {"metavar": "FOLDER", "default": "runs", "help": "folder of all results"},
    "--16-bit": {"dest": "load_in_8bit", "action": "store_false", "help": "load weights in 16 or 32 bits, not in 8"},
    "--profile-source": _TEXT | {"help": "text to count on (default: the text of the package)"},
    "--profile-source|--source": _TEXT | {"help": "text to count on (default: the text of the package)"},
    "--tokens": _COUNT | {"help": "tokens to count in each language (default: 2048)"},
    "--top-rate": _RATE | {"default": 0.05, "help": "share of all neurons to select, in all languages together"},
    "--shard": {"action": "store_true", "help": "split a 16-bit model over the processes of torchrun or accelerate"},
    "--languages": {"metavar": "CODES", "help": 'as in "yo is ka", or "all" that the text has (default: 22 languages)'},
    "--method": {"default": "subnetwork", "help": "subnetwork, lora, lora-equal (of its size), ia3, ffn or full"},
    "--selection": {"default": "specific", "help": "which neurons a subnetwork trains: specific, lape, or random"},
    "--scale": {"type": _scale, "metavar": "FACTOR", "help": "share of the change (default: auto, then as saved)"},
    "--seed": {"type": int, "default": 0, "help": "seed of text order and random choices"},
    "--source": _TEXT | {"default": "auto", "help": 'training text: a name, names joined with "+", a file or a folder'},
    "--other-text": _TEXT | {"default": "sib200", "help": 'text of another genre to score: a name, or "sib200:FOLDER"'},
    "--batch-size": _COUNT | {"default": 2, "help": "windows in a batch"},
    "--window": _COUNT | {"default": 256, "help": "tokens in a window"},
    "--optimizer": {"default": "adamw", "help": "adamw or adamw8bit"},
    "--checkpoint-activations": {"action": "store_true", "help": "recompute activations: less memory, more time"},
    "--learning-rate": _RATE | {"help": "peak rate (default: depends on --method)"},
    "--max-tokens": _COUNT | {"help": "tokens to train on (default: 30720)"},
    "--tasks": {"nargs": "+", "metavar": "TASK", "help": 'score tasks, not perplexity: NAME, NAME:FOLDER, or "all"'},
    "--limit": _COUNT | {"help": "largest number of questions in each task"},
    "--translations": _COUNT | {"help": "largest number of texts to translate in each direction"},
    "--shots": {"type": int, "metavar": "N", "help": "solved examples before each question"},
    "--neurons": {"default": "1000", "metavar": "N|FILE", "help": "their number, or a neurons.safetensors file"},
    "--lang": {"help": "language in that file (default: the one with the most neurons)"},
    "--dtype": {"help": "float32, bfloat16 or float16 (default: what the device is best at)"},
    "--device": {"choices": ("cuda", "cpu"), "help": "device to plan for (default: the one of this machine)"},
    "output": {"help": "file or folder to write"},
    "files": {"nargs": "*", "metavar": "FILE", "help": "metrics.json files (default: all under --runs)"},
    "--format": {"default": "peft", "help": "peft, gguf-lora or merged"},
    "--uniform-rank": {"action": "store_true", "help": "give all modules the same rank, as vLLM needs"},
    "--push": {"metavar": "USER/NAME", "help": "also upload the folder to the Hugging Face hub"},
}
_COMMON = "--model --runs"
_PROFILE = f"{_COMMON} --16-bit --tokens --top-rate"
_MEMORY = "--batch-size --window --optimizer --checkpoint-activations"
_PLAN = f"{_COMMON} --neurons --lang --method --16-bit --dtype --device"
_RUN = f"{_COMMON} lang --method --selection --scale --seed"
_TRAIN = f"{_RUN} {_PROFILE.removeprefix(_COMMON)} --profile-source --source --other-text {_MEMORY}"
_TRAIN += " --learning-rate --max-tokens"
_COMMANDS = {
    "languages": ("code", "list the supported languages, or look one up"),
    "profile": (f"{_PROFILE} --profile-source|--source --shard --languages", "count how often each neuron fires"),
    "select": (f"{_PROFILE} --profile-source --selection", "select the neurons that are specific to each language"),
    "finetune": (f"{_TRAIN} --shard", "train the neurons of one language; profiles and selects first"),
    "evaluate": (f"{_TRAIN} --tasks --limit --translations --shots", "score a run, trained if need be, and its base"),
    "report": (_RUN, "print the table of a run that was evaluated"),
    "plan": (f"{_PLAN} {_MEMORY}", "estimate the memory of a training run without loading the model"),
    "collect": (f"{_COMMON} output files", "write the scores of all evaluated runs to one CSV file"),
    "export": (f"{_RUN} output --push --format --uniform-rank", "write a run as LoRA or merged, with a model card"),
    "merge": (f"{_RUN} output --push", "write the 16-bit model with a run merged into it, with a model card"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ssetools", description=_DESCRIPTION, epilog=_EPILOG)
    parser.set_defaults(shard=False, format="merged", uniform_rank=False)  # of commands without these options
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    functions = (_languages, _profile, _select, _finetune, _evaluate, _report, _plan, _collect, _export, _export)
    for (name, (options, about)), function in zip(_COMMANDS.items(), functions, strict=True):
        command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        command.set_defaults(command=function)
        for option in options.split():
            settings = _OPTIONS[option]
            default = " (default: %(default)s)" if "default" in settings else ""
            command.add_argument(*option.split("|"), **settings | {"help": settings["help"] + default})
    return parser


# --- the commands ---


def _languages(arguments: argparse.Namespace) -> None:
    for x in [get_language(arguments.code)] if arguments.code else LANGUAGES:
        print(f"{x.code:<4}{x.iso639_3:<5}{x.name:<12} {x.own_name:<12} {x.script:<6}{x.family}")


def _load(arguments: argparse.Namespace, load_in_8bit: bool) -> tuple[Any, Any]:
    load = ssetools.load_sharded if arguments.shard else ssetools.load_model
    return load(arguments.model, load_in_8bit=load_in_8bit)


def _profile_options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {"source": arguments.profile_source}
    return options | ({"tokens_per_language": arguments.tokens} if arguments.tokens else {})


def _profile(arguments: argparse.Namespace) -> None:
    from ssetools.steps import get_profile

    options = _profile_options(arguments)
    if arguments.languages == "all":
        options["languages"] = languages_in(arguments.profile_source or default_source())
    elif arguments.languages:
        options["languages"] = [get_language(code).code for code in arguments.languages.split()]
    profile = get_profile(*_load(arguments, arguments.load_in_8bit), arguments.runs, **options)
    print(f"{len(profile.languages)} languages, {int(profile.tokens[0]):,} tokens each: {' '.join(profile.languages)}")


def _select(arguments: argparse.Namespace) -> None:
    from ssetools.steps import get_neurons

    model, tokenizer = _load(arguments, arguments.load_in_8bit)
    options = _profile_options(arguments)
    neurons = get_neurons(model, tokenizer, arguments.runs, arguments.top_rate, arguments.selection, **options)
    for lang in neurons:
        print(f"{lang:<4}{neurons.count(lang):>8,} neurons")


def _get_run(arguments: argparse.Namespace) -> tuple:
    """Loads or trains the run; returns the model with its adapter, the tokenizer, the run's folder and the plan."""
    from ssetools.steps import get_neurons, get_run, method_with

    lang = get_language(arguments.lang).code
    name, selection = method_with(arguments.method, arguments.selection)
    method = ssetools.METHODS[name]
    model, tokenizer = _load(arguments, arguments.load_in_8bit and method.on_8bit)
    neurons = None
    if method.needs_neurons:
        options = _profile_options(arguments)
        neurons = get_neurons(model, tokenizer, arguments.runs, arguments.top_rate, selection, **options)
    plan = plan_texts(arguments.source, arguments.other_text, lang)
    print(f"Training text: {plan.train}. {plan.reason}", flush=True)
    settings = {"learning_rate": arguments.learning_rate, "max_tokens": arguments.max_tokens}
    settings = {name: value for name, value in settings.items() if value is not None} | _memory_settings(arguments)
    settings |= {"seed": arguments.seed, "runs": arguments.runs, "scale": arguments.scale}
    folder = get_run(model, tokenizer, lang, neurons, plan, name, **settings)
    return model, tokenizer, folder, plan


def _memory_settings(arguments: argparse.Namespace) -> dict:
    return {name: getattr(arguments, name) for name in ("batch_size", "window", "optimizer", "checkpoint_activations")}


def _finetune(arguments: argparse.Namespace) -> None:
    _, _, folder, _ = _get_run(arguments)
    print(f"adapter: {folder}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from ssetools.evaluation.task_sets import parse_tasks
    from ssetools.report import get_task_scores, report, task_report
    from ssetools.steps import get_metrics

    if arguments.tasks:
        parse_tasks(arguments.tasks)  # find a misspelt name before the model is loaded
    model, tokenizer, folder, plan = _get_run(arguments)
    if not arguments.tasks:
        print(report(get_metrics(model, tokenizer, arguments.lang, folder, plan, arguments.runs)))
        return
    print(f"Scoring the trained model and its base on {' '.join(arguments.tasks)} ...", flush=True)
    options = (arguments.tasks, arguments.limit, arguments.translations, arguments.shots)
    print(task_report(get_task_scores(model, tokenizer, arguments.lang, folder, *options)))


def _run_file(arguments: argparse.Namespace, needed: str) -> Path:
    """Finds a file of a finished run, of results at the scale that is asked for."""
    from ssetools.steps import method_with, results_at_scale, scale_of_run

    get_language(arguments.lang)
    method, _ = method_with(arguments.method, arguments.selection)
    folder = run_dir(arguments.model, arguments.lang, method, arguments.seed, arguments.runs)
    path = folder / needed
    if arguments.scale is not None and needed != "adapter.json":
        path, _ = results_at_scale(folder, needed, scale_of_run(folder, arguments.scale))
    if not path.is_file():
        first = "finetune" if needed == "adapter.json" else "evaluate"
        defaults = vars(_parser().parse_args([first, arguments.lang]))
        given = {name: getattr(arguments, name) for name in ("model", "method", "selection", "seed", "runs", "scale")}
        options = [f" --{name} {value}" for name, value in given.items() if value != defaults[name]]
        raise FileNotFoundError(f"There is no {path}: run `ssetools {first} {arguments.lang}{''.join(options)}` first.")
    return path


def _report(arguments: argparse.Namespace) -> None:
    from ssetools.report import report

    print(report(read_json(_run_file(arguments, "metrics.json"))))


def _collect(arguments: argparse.Namespace) -> None:
    from ssetools.report import collect

    print(f"{collect(arguments.runs, arguments.output, arguments.files)} runs: {arguments.output}")


def _export(arguments: argparse.Namespace) -> None:
    from ssetools.export import export_run, push_to_hub

    run = _run_file(arguments, "adapter.json").parent
    form = (arguments.format, arguments.uniform_rank, arguments.scale)
    print(f"{arguments.format}: {export_run(run, arguments.output, arguments.model, *form)}")
    if arguments.push:
        print(f"hub: {push_to_hub(arguments.output, arguments.push)}")


def _plan(arguments: argparse.Namespace) -> None:
    if arguments.neurons.isdigit():
        neurons = int(arguments.neurons)
    else:
        sets = ssetools.NeuronSets.load(arguments.neurons)
        neurons = sets[arguments.lang or max(sets, key=sets.count)]
    base = (arguments.load_in_8bit, arguments.dtype, arguments.device)
    print(ssetools.plan_memory(arguments.model, neurons, arguments.method, *base, **_memory_settings(arguments)))
