"""Loads the embedded model, a hub model or a local folder, in 8-bit by default, frozen and ready to use."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from ssetools import processes
from ssetools.errors import InvalidInput
from ssetools.files import digest_of_files, digest_of_weights
from ssetools.text.embedded import EMBEDDED_MODEL, EMBEDDED_MODELS, embedded_folder
from ssetools.text.hub import hub_reachable, on_hub, quiet

# bitsandbytes warns at every matrix product that activations are cast to fp16, which is expected, and on CPUs with
# AVX-512 advises a kernel for 4-bit weights.
for _name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_QUANTIZED = ("int8", "nf4", "fp4")  # the kinds that can be read; others replace the layers by classes without a weight
_LAYER_LISTS = ("layers", "h", "blocks")  # what families call the list of decoder layers
_say_once = functools.cache(print)
_NO_FP16_MODELS = ("gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma2")


def load_model(
    name: str = EMBEDDED_MODEL,
    load_in_8bit: bool = True,
    dtype: torch.dtype | str | None = None,
    device_map: str | dict | None = None,
) -> tuple[nn.Module, Any]:
    """Loads a causal language model with every weight frozen, and its tokenizer.

    Args:
        name: "gemma-3-270m" or "smollm2-135m" (embedded, need no hub), a hub id, or a local transformers folder.
        load_in_8bit: Load linear layers as `bitsandbytes` LLM.int8 (head and embeddings excluded). False keeps
            all weights in `dtype`, or in the 4 bits of a checkpoint that `bitsandbytes` quantised.
        dtype: Of the weights that are not 8-bit, and of the computation. None chooses by hardware and model and
            prints the reason once.
        device_map: As in transformers, but all on one device; None takes the first GPU (each of several processes its
            own), else the CPU.

    Returns:
        `(model, tokenizer)`. The model is in evaluation mode.

    Raises:
        ValueError: For a name that is neither embedded, a folder, nor a reachable hub model, for a model that is spread
            over several devices, and for quantised checkpoints other than those of `bitsandbytes`.
    """
    import transformers

    folder = name
    if name in EMBEDDED_MODELS:
        with processes.state().main_process_first():
            folder = str(embedded_folder(name))
    if not Path(folder).is_dir() and not on_hub(folder):
        raise InvalidInput(
            f"Unknown model {name!r}: use {' or '.join(map(repr, EMBEDDED_MODELS))} (embedded), a local transformers folder, or the "
            "id of a hub model (owner/name); the hub must be reachable, and gated models need a token (HF_TOKEN)."
        )
    wanted = as_dtype(dtype) if dtype else None
    options: dict[str, Any] = {"device_map": device_map or {"": _device(None)}}
    with quiet("transformers"):
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            kind = _quantization_in(config)
            if kind and (kind not in _QUANTIZED or load_in_8bit and kind != "int8"):
                other = ", or this one with load_in_8bit=False" if kind in _QUANTIZED else ""
                raise ValueError(
                    f"its weights are stored in {kind}. Load the 16-bit model that it was made from{other}."
                )
            options["dtype"] = wanted or choose_dtype(config, _device(device_map))
            if load_in_8bit:
                options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
            text_only = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
            auto = transformers.AutoModelForCausalLM if text_only else transformers.AutoModelForImageTextToText
            model: Any = auto.from_pretrained(folder, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).strip().splitlines()[:2])  # the second line often has the remedy
            raise InvalidInput(f"Model {name!r} cannot be loaded: {reason or type(error).__name__}") from error
    _check_one_device(model)
    if load_in_8bit and quantization_of(model) != "int8":
        raise InvalidInput(f"bitsandbytes converts no layer of {name!r} to 8-bit: load it with load_in_8bit=False.")
    model.requires_grad_(False)
    # Embeddings and norms are views of the mapped checkpoint. As long as such a view exists, the whole file stays in
    # memory, with the 16-bit weights of the 8-bit layers.
    for tensor in (*model.parameters(), *model.buffers()) if load_in_8bit else ():
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()
    model.ssetools_source = {"model": name, "revision": model_revision(name, model.config)}
    if name not in EMBEDDED_MODELS and (weights := _digest_of_weights(name, model.config)):
        model.ssetools_source["weights"] = weights
    return model.eval(), tokenizer


def model_source(model: nn.Module) -> dict[str, Any]:
    """Returns what identifies a loaded model in files: `model` (name), `revision`, `load_in_8bit` and `dtype`.

    Where they apply, also `weights` (digest, of safetensors outside of the package) and `quantization` (such as "nf4").
    """
    unknown = {"model": getattr(model.config, "_name_or_path", "") or type(model).__name__, "revision": None}
    kind = quantization_of(model)
    facts = getattr(model, "ssetools_source", unknown) | {"load_in_8bit": kind == "int8"}
    facts |= {"quantization": kind} if kind not in (None, "int8") else {}
    return facts | {"dtype": str(next(p.dtype for p in model.parameters() if p.is_floating_point()))[6:]}


def model_precision(model: nn.Module) -> dict[str, Any]:
    """Returns what distinguishes loads of the same model: `load_in_8bit`, `quantization` (None if none) and `dtype`."""
    source = model_source(model)
    return {key: source.get(key) for key in ("load_in_8bit", "quantization", "dtype")}


def quantization_of(model: nn.Module) -> str | None:
    """Returns "int8", "nf4" or "fp4" (bitsandbytes), the name of another method ("gptq"), or None for plain weights."""
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            return "int8"
        if type(module).__name__ == "Linear4bit":
            return cast(Any, module.weight).quant_type
    kind = _quantization_in(getattr(model, "config", None))
    return None if kind in _QUANTIZED else kind  # those are known by their layers


def _quantization_in(config: Any) -> str | None:
    """Returns the quantisation that a transformers config names."""
    facts = getattr(config, "quantization_config", None) or {}
    facts = facts if isinstance(facts, Mapping) else facts.to_dict()
    if facts.get("load_in_8bit"):
        return "int8"
    return facts.get("bnb_4bit_quant_type") if facts.get("load_in_4bit") else facts.get("quant_method")


def check_base_model(model: nn.Module, use: str) -> None:
    """Raises a ValueError if a model cannot be the base of `use`, the start of a sentence ("Profiling", "Training").

    That is with an adapter switched on, layers of PEFT, weights quantised by others than `bitsandbytes`, or several
    devices.
    """
    adapter: Any = getattr(model, "ssetools_adapter", None)
    kind = quantization_of(model)
    if adapter is not None and adapter.active:
        raise InvalidInput(f"{use} needs the base, and an adapter is attached to it: detach() or switched_off() it.")
    if adapter is None and getattr(model, "peft_config", None):
        raise InvalidInput(
            f"{use} needs a base model, and this one carries a PEFT adapter. Take it off (`peft_model.unload()`), or merge "
            "it (`merge_and_unload()`), save the result to a folder and load that."
        )
    if kind and kind not in _QUANTIZED:
        raise InvalidInput(f"{use} cannot read weights in {kind}: load the 16-bit model that this one was made from.")
    _check_one_device(model)


def int8_scales(module: nn.Module) -> torch.Tensor:
    """Returns the scale of each row of an 8-bit layer [out], whose weights are its codes times scale / 127."""
    weight: Any = module.weight
    # bitsandbytes moves the scales from the weight to the layer's state at the first forward pass.
    return weight.SCB if weight.SCB is not None else cast(Any, module.state).SCB


def body_of(model: nn.Module) -> nn.Module:
    """Returns the model without its head; a ValueError for a `PeftModel`, and for a model that has no such part."""
    if hasattr(model, "get_base_model"):
        raise InvalidInput(
            f"This is a {type(model).__name__} around a model. To score it with its LoRA or IA3 adapter, pass "
            "model.get_base_model(); to profile or train, merge the adapter first (model.merge_and_unload())."
        )
    for name in (getattr(model, "base_model_prefix", None), "model"):
        if name and isinstance(body := getattr(model, name, None), nn.Module):
            return body
    raise InvalidInput(
        f"{type(model).__name__} is not a causal language model: it has no decoder beside its head. Of a model that has "
        "several parts, pass the one that predicts text (of Qwen-Omni, `model.thinker`)."
    )


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of a model's text decoder, first to last; a ValueError if they have no known name."""
    body: Any = body_of(model)
    decoder = body.get_decoder() if hasattr(body, "get_decoder") else body
    for name, child in decoder.named_children():
        if name in _LAYER_LISTS and isinstance(child, nn.ModuleList):
            return list(child)
    raise InvalidInput(f"No decoder layers found in {type(model).__name__}: open an issue that shows print(model).")


def device_of(model: nn.Module) -> torch.device:
    """Returns the device that takes a model's token ids."""
    return cast(Any, model).get_input_embeddings().weight.device


def num_parameters(model: nn.Module) -> int:
    """Counts the model's weights, in whatever number of bits they are stored; tied weights once."""
    own = [p for name, p in model.named_parameters() if not name.startswith("ssetools_adapter.")]
    states = [(p, getattr(p, "quant_state", None)) for p in own]  # 4-bit weights are stored in pairs
    return sum(p.numel() if state is None else state.shape.numel() for p, state in states)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into the one mode in which ssetools counts, trains and scores, and restores the old one.

    Dropout is off, and layers of `bitsandbytes` compute as in `train()`. On a CPU their `eval()` rounds activations to
    int8 too, is half as fast, and may repack 4-bit weights, through which no gradient flows. On CUDA both are the same.
    """
    before = {module: module.training for module in model.modules()}
    model.eval()
    for module in before:
        if type(module).__name__ in ("Linear8bitLt", "Linear4bit"):
            module.training = True
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def choose_dtype(config: Any, device: str) -> torch.dtype:
    """Chooses the dtype for a model on a device, and prints the reason once per process."""
    gpu = device.startswith("cuda")
    if gpu and torch.cuda.get_device_capability()[0] >= 8:
        dtype, reason = torch.bfloat16, "this GPU computes in bfloat16"
    elif gpu and config.model_type in _NO_FP16_MODELS:
        dtype, reason = torch.float32, f"this GPU has no bfloat16 and {config.model_type} overflows float16"
    elif gpu:
        dtype, reason = torch.float16, "this GPU has no bfloat16"
    elif device == "mps":
        dtype, reason = torch.float32, "bfloat16 is not reliable on MPS"
    elif any(getattr(torch.cpu, x, bool)() for x in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")):
        dtype, reason = torch.bfloat16, "this CPU has bfloat16 instructions"
    else:
        dtype, reason = torch.float32, "this CPU has no bfloat16 instructions, and emulating them is slow"
    _say_once(f"dtype {str(dtype)[6:]} on {device}: {reason}.", flush=True)
    return dtype


def _device(device_map: str | dict | None) -> str:
    """Returns the device that a device map names first; where it names none, this process's GPU, else the CPU."""
    named = str(next(iter(device_map.values())) if isinstance(device_map, dict) else device_map)
    if named.isdigit() or named.split(":")[0] in ("cpu", "cuda", "mps"):
        return f"cuda:{named}" if named.isdigit() else named
    if torch.cuda.is_available():
        return f"cuda:{processes.state().local_process_index}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_one_device(model: nn.Module) -> None:
    """Refuses offloaded layers and several devices: slices need a layer's weights on the device of its input."""
    devices = sorted({str(tensor.device) for tensor in model.parameters()})
    # Without accelerate's hooks, a model on "meta" was built without data, to plan its memory.
    offloaded = devices == ["meta"] and any(hasattr(module, "_hf_hook") for module in model.modules())
    if len(devices) > 1 or offloaded:
        raise InvalidInput(
            f"The model is spread over several devices: {', '.join(devices)} (meta: offloaded). Name one device that can "
            'hold it, as in device_map={"": "cuda:0"}, load it in 8 bits, or spread it with `--shard`.'
        )


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Returns a floating-point dtype by its name; a ValueError if there is no such dtype."""
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise InvalidInput(f"Unknown dtype {dtype!r}: use float32, bfloat16 or float16.")
    return named


def model_revision(name: str, config: Any = None) -> str | None:
    """Returns an identifier of a model's state, without loading its weights; None if none is known.

    That is the hub's commit, the digest of the embedded file, or a digest of a local folder's config and of samples of
    its weight files. `config` is the model's transformers config, where it is loaded already.
    """
    if name in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[name]
    if config is None:
        import transformers

        hub_reachable()  # without a network the libraries ask their caches, and do not retry for half a minute
        config = transformers.AutoConfig.from_pretrained(name)
    commit = getattr(config, "_commit_hash", None)
    return digest_of_files(Path(name)) if not commit and Path(name).is_dir() else commit


def _digest_of_weights(name: str, config: Any) -> str | None:
    """Returns the `digest_of_weights` of a local folder, or of a hub model in the hub's cache; None if not there."""
    from huggingface_hub import try_to_load_from_cache

    path = Path(name) / "config.json"
    if not path.is_file():
        path = try_to_load_from_cache(name, "config.json", revision=getattr(config, "_commit_hash", None))
    return digest_of_weights(Path(path).parent) if isinstance(path, str | Path) else None


def model_mismatch(recorded: Mapping[str, Any], source: Mapping[str, Any]) -> str | None:
    """Says in what another model differs from the one that a file was made for ("model 'a', not 'b'"), or None.

    Both give `model`, `revision` and `weights` as `model_source` does, as far as they are known. Equal weights are the
    same model, whatever its folder, files and revision are called. The revision decides where the weights of one of the
    two are unknown, and the name where nothing else is known.
    """
    revisions = recorded.get("revision"), source.get("revision")
    if revisions[0] and revisions[0] == revisions[1]:
        return None
    for key in ("weights", "revision", "model"):
        first, second = recorded.get(key), source.get(key)
        if first and second:
            return None if first == second else f"{key} {first!r}, not {second!r}"
    return None


# --- a base spread over processes ---


def is_sharded(model: nn.Module) -> bool:
    """Says whether the model is spread over processes."""
    return getattr(model, "ssetools_sharded", False)


def load_sharded(
    name: str, load_in_8bit: bool = False, dtype: torch.dtype | str | None = None
) -> tuple[nn.Module, Any]:
    """Returns `load_model`'s model, spread over all processes by `shard_model`, and tokenizer; errors as of that."""
    _check_can_shard(load_in_8bit)
    model, tokenizer = load_model(name, load_in_8bit=False, dtype=dtype, device_map={"": "cpu"})
    return shard_model(model), tokenizer


def shard_model(model: nn.Module) -> nn.Module:
    """Spreads the frozen weights of a 16- or 32-bit model, the same in all processes, over them (FSDP); returns it.

    Each process keeps 1/processes of the weights; it gathers embeddings, final norm and head for the duration of a
    step, and each layer while it computes. What is attached later stays whole in every process. All processes must make
    the same number of forward passes (`processes.in_step`). A ValueError for a quantised base, or a single process.
    """
    _check_can_shard(quantization_of(model) is not None)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes.count(),))
    model.requires_grad_(False)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    # The loss reads the head's weight after the body has run, and never calls the head: so it is gathered with the body,
    # of which it is no part. A tied head shares its weight with the embeddings, which are.
    body: Any = body_of(model)
    body.head_gathered_here = cast(Any, model).get_output_embeddings()
    fully_shard(body, mesh=mesh, reshard_after_forward=False)
    del body.head_gathered_here
    cast(Any, model).ssetools_sharded = True
    return model


def _check_can_shard(quantized: bool) -> None:
    if quantized:
        raise InvalidInput(
            "A quantised base cannot be sharded, since FSDP gathers weights without their scales: load it in 16 bits "
            "(--16-bit), or leave sharding out if it fits one device."
        )
    if processes.count() == 1:
        raise InvalidInput(
            "Sharding spreads a model over several processes, and there is one: start the command with "
            "`accelerate launch --num_processes N -m ssetools ...` (GPUs) or `torchrun --nproc_per_node N -m ssetools ...`."
        )
