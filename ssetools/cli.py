"""The command line: `ssetools languages, profile, select, plan, finetune, evaluate, report, collect, export, merge`.

Each command does one step of the pipeline for one model, finding what earlier steps left under `runs/`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ssetools.embedded_model import EMBEDDED_MODEL
from ssetools.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 if the reader of the output closed it; 2 after an error that the user can fix, which is
        printed as one sentence; 130 if the user interrupted. Any other error is a fault of the program, and is raised.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _one_voice():
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


def _one_voice():
    """Of several processes that do one job, the first one speaks."""
    # Set by torchrun and accelerate, and by two kinds of MPI.
    ranks = [os.environ.get(name) for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")]
    spoken = all(rank in (None, "0") for rank in ranks)
    return contextlib.nullcontext() if spoken else contextlib.redirect_stdout(io.StringIO())


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of one or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ssetools", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name, function, about):
        one = commands.add_parser(name, help=about, description=about)
        one.set_defaults(command=function)
        one.add_argument("--model", default=EMBEDDED_MODEL, help="embedded name, hub id or local folder")
        one.add_argument("--runs", default="runs", help="folder of runs")
        return one

    def with_profile(one):
        one.add_argument("--16-bit", dest="load_in_8bit", action="store_false", help="load 16/32-bit weights")
        one.set_defaults(shard=False)
        one.add_argument("--profile-source", default=None, help="text to profile on (default: the embedded text)")
        one.add_argument("--tokens", type=_count, default=None, help="profiled tokens per language")
        one.add_argument("--top-rate", type=float, default=0.05, help="share of all neurons to select")

    def with_shards(one):
        one.add_argument(
            "--shard", action="store_true", help="spread a 16-bit model over the processes of torchrun or accelerate"
        )

    def with_memory(one):
        one.add_argument("--batch-size", type=_count, default=4, help="windows per forward pass")
        one.add_argument("--window", type=_count, default=256, help="tokens per window")
        one.add_argument("--optimizer", default="adamw", help="adamw or adamw8bit")
        one.add_argument("--checkpoint-activations", action="store_true", help="compute activations again, keep few")

    def with_run(one):
        one.add_argument("lang", help="language code, e.g. yo")
        one.add_argument(
            "--method", default="lape", help="lape, random, random-uniform, lora, lora-equal, ia3, ffn or full"
        )
        one.add_argument("--seed", type=int, default=0)

    one = command("languages", _languages, "list the languages, or check one code")
    one.add_argument("lang", nargs="?", help="language code, e.g. yo")
    one = command("profile", _profile, "count which FFN neurons fire, per language")
    with_profile(one)
    with_shards(one)
    one.add_argument("--source", dest="profile_source", help="the same as --profile-source")
    one.add_argument("--languages", help='codes, as in "yo is ka", or "all" that the source holds (default: 22)')
    with_profile(command("select", _select, "choose language-specific neurons by LAPE"))
    for name, function, about in (
        ("finetune", _finetune, "train only the neurons of one language"),
        ("evaluate", _evaluate, "score a run against the base model"),
    ):
        one = command(name, function, about)
        with_run(one)
        with_profile(one)
        one.add_argument("--source", default="auto", help='training text: "udhr+mediawiki", a file or a folder')
        one.add_argument("--other-text", default="sib200", help='text of another kind: "sib200" or "sib200:FOLDER"')
        with_memory(one)
        if name == "finetune":
            with_shards(one)
        one.add_argument("--learning-rate", type=float, default=None)
        one.add_argument("--max-tokens", type=_count, default=None, help="training tokens")
        if name == "evaluate":
            one.add_argument("--tasks", nargs="+", help='tasks instead of perplexity: NAME, NAME:FOLDER, or "all"')
            one.add_argument("--limit", type=_count, default=None, help="questions of each task at most")
            one.add_argument("--translations", type=_count, default=None, help="texts to translate at most, each way")
            one.add_argument("--shots", type=int, default=None, help="answered examples before each question")
    with_run(command("report", _report, "print the table of a scored run"))
    one = command("plan", _plan, "predict the memory of a training run, loading nothing")
    one.add_argument("--neurons", default="1000", help="how many neurons are trained, or a neurons.safetensors file")
    one.add_argument("--lang", default=None, help="language whose neurons of the file are trained (default: the most)")
    one.add_argument("--method", default="lape", help="as for finetune")
    one.add_argument("--16-bit", dest="load_in_8bit", action="store_false", help="16/32-bit weights")
    one.add_argument("--dtype", default=None, help="float32, bfloat16 or float16")
    one.add_argument("--device", default=None, choices=("cuda", "cpu"), help="where it is to run (default: as here)")
    with_memory(one)
    one = command("collect", _collect, "gather the metrics of all scored runs into one CSV file")
    one.add_argument("output", help="file to write")
    one.add_argument("files", nargs="*", help="metrics.json of each run (default: of all under --runs)")
    for name, about in (
        ("export", "write a run as a LoRA checkpoint or a merged model, with a model card"),
        ("merge", "add a run's deltas to the 16-bit model and save it; scored again if the run was scored"),
    ):
        one = command(name, _export, about)
        with_run(one)
        one.add_argument("output", help="folder to write")
        one.add_argument("--push", metavar="USER/NAME", help="also upload the folder to the Hugging Face hub")
        if name == "merge":
            one.set_defaults(format="merged", uniform_rank=False)
        else:
            one.add_argument("--format", default="peft", help="peft, gguf-lora or merged")
            one.add_argument("--uniform-rank", action="store_true", help="one rank for all modules, as vLLM needs")
    return parser


def _languages(arguments):
    from ssetools.languages import LANGUAGES, get_language

    for x in [get_language(arguments.lang)] if arguments.lang else LANGUAGES:
        print(f"{x.code:<4}{x.iso639_3:<5}{x.name:<12} {x.own_name:<12} {x.script:<6}{x.family}")


def _loaded(arguments, load_in_8bit=None):
    from ssetools.models import load_model, load_sharded

    load = load_sharded if arguments.shard else load_model
    return load(arguments.model, load_in_8bit=arguments.load_in_8bit if load_in_8bit is None else load_in_8bit)


def _profile_options(arguments) -> dict:
    options = {"source": arguments.profile_source}
    return options | ({"tokens_per_language": arguments.tokens} if arguments.tokens else {})


def _profile(arguments):
    from ssetools.languages import get_language, languages_in
    from ssetools.steps import get_profile
    from ssetools.text.sources import default_source

    options = _profile_options(arguments)
    if arguments.languages == "all":
        options["languages"] = languages_in(arguments.profile_source or default_source())
    elif arguments.languages:
        options["languages"] = [get_language(code).code for code in arguments.languages.split()]
    profile = get_profile(*_loaded(arguments), arguments.runs, **options)
    print(f"{len(profile.languages)} languages, {int(profile.tokens[0]):,} tokens each: {' '.join(profile.languages)}")


def _select(arguments):
    from ssetools.steps import get_neurons

    neurons = get_neurons(*_loaded(arguments), arguments.runs, arguments.top_rate, **_profile_options(arguments))
    for lang in neurons:
        print(f"{lang:<4}{neurons.count(lang):>8,} neurons")


def _attached(arguments):
    from ssetools.languages import get_language
    from ssetools.steps import get_neurons, get_run
    from ssetools.text.sources import plan_texts
    from ssetools.training.methods import METHODS, check_method

    get_language(arguments.lang)
    check_method(arguments.method)
    method = METHODS[arguments.method]
    model, tokenizer = _loaded(arguments, arguments.load_in_8bit and method.on_8bit)
    neurons = None
    if method.needs_neurons:
        neurons = get_neurons(model, tokenizer, arguments.runs, arguments.top_rate, **_profile_options(arguments))
    plan = plan_texts(arguments.source, arguments.other_text)
    settings = {"learning_rate": arguments.learning_rate, "max_tokens": arguments.max_tokens}
    settings = {name: value for name, value in settings.items() if value is not None} | _memory_settings(arguments)
    print(f"Training text: {plan.train}. {plan.reason}", flush=True)
    folder = get_run(
        model, tokenizer, arguments.lang, neurons, plan, arguments.method, arguments.seed, arguments.runs, **settings
    )
    return model, tokenizer, folder, plan


def _memory_settings(arguments) -> dict:
    return {n: getattr(arguments, n) for n in ("batch_size", "window", "optimizer", "checkpoint_activations")}


def _finetune(arguments):
    print(f"adapter: {_attached(arguments)[2]}")


def _evaluate(arguments):
    if arguments.tasks:
        _evaluate_tasks(arguments)
        return
    from ssetools.report import report
    from ssetools.steps import get_metrics

    model, tokenizer, folder, plan = _attached(arguments)
    print(report(get_metrics(model, tokenizer, arguments.lang, folder, plan, arguments.runs)))


def _evaluate_tasks(arguments):
    from ssetools.evaluation.tasks.questions import parse_tasks
    from ssetools.report import get_task_scores, task_report

    parse_tasks(arguments.tasks)  # a misspelt name is found before the model is loaded
    model, tokenizer, folder, _ = _attached(arguments)
    print(f"Answers of the tuned model and of its base: {' '.join(arguments.tasks)} ...", flush=True)
    asked = (arguments.tasks, arguments.limit, arguments.translations, arguments.shots)
    print(task_report(get_task_scores(model, tokenizer, arguments.lang, folder, *asked)))


def _folder(arguments, needed: str) -> Path:
    from ssetools.files import run_dir
    from ssetools.languages import get_language

    get_language(arguments.lang)
    folder = run_dir(arguments.model, arguments.lang, arguments.method, arguments.seed, arguments.runs)
    if not (folder / needed).is_file():
        first = "finetune" if needed == "adapter.json" else "evaluate"
        usual = vars(_parser().parse_args([first, arguments.lang]))
        given = {name: getattr(arguments, name) for name in ("model", "method", "seed", "runs")}
        options = [f" --{name} {value}" for name, value in given.items() if value != usual[name]]
        command = f"ssetools {first} {arguments.lang}{''.join(options)}"
        raise FileNotFoundError(f"There is no {folder / needed}: run `{command}` first.")
    return folder


def _report(arguments):
    from ssetools.files import read_json
    from ssetools.report import report

    path = _folder(arguments, "metrics.json") / "metrics.json"
    print(report(read_json(path)))


def _collect(arguments):
    from ssetools.report import collect

    print(f"{collect(arguments.runs, arguments.output, arguments.files)} runs: {arguments.output}")


def _export(arguments):
    from ssetools.export import export_run, push_to_hub

    run = _folder(arguments, "adapter.json")
    print(
        f"{arguments.format}: {export_run(run, arguments.output, arguments.model, arguments.format, arguments.uniform_rank)}"
    )
    if arguments.push:
        print(f"hub: {push_to_hub(arguments.output, arguments.push)}")


def _plan(arguments):
    from ssetools.memory_plan import plan_memory
    from ssetools.neurons.sets import NeuronSets

    if arguments.neurons.isdigit():
        neurons = int(arguments.neurons)
    else:
        sets = NeuronSets.load(arguments.neurons)
        neurons = sets[arguments.lang or max(sets, key=sets.count)]
    plan = plan_memory(
        arguments.model,
        neurons,
        arguments.method,
        arguments.load_in_8bit,
        arguments.dtype,
        arguments.device,
        **_memory_settings(arguments),
    )
    print(plan)


if __name__ == "__main__":
    sys.exit(main())
