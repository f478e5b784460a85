"""Loads the embedded model, a hub model or a local folder, in 8-bit by default, frozen and ready to use."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from ssetools import processes
from ssetools.embedded_model import EMBEDDED_MODEL, GGUF_SHA256, gemma_folder
from ssetools.errors import InvalidInput
from ssetools.text.hub import hub_reachable, quiet_transformers

# One line per matrix product that says activations are cast to fp16: true, expected, and hundreds of them. And, on CPUs
# with AVX-512, advice about a kernel for 4-bit weights, which are not used here.
for _name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of each file of weights, at even distances
_LAYER_LISTS = ("layers", "h", "blocks")  # what families call the list of decoder layers
_NO_FP16_MODELS = ("gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma2")


def load_model(
    name: str = EMBEDDED_MODEL,
    load_in_8bit: bool = True,
    dtype: torch.dtype | str | None = None,
    device_map: str | dict | None = None,
) -> tuple[nn.Module, object]:
    """Loads a causal language model with every weight frozen, and its tokenizer.

    Args:
        name: "gemma-3-270m" (embedded, needs no hub), a hub id, or a local transformers folder.
        load_in_8bit: Load linear layers as `bitsandbytes` LLM.int8 (head and embeddings excluded). False keeps
            all weights in `dtype`.
        dtype: Of the weights that are not 8-bit, and of the computation. None chooses by hardware and model and
            prints the reason once.
        device_map: As in transformers, but all on one device; None takes the first GPU (each of several processes its
            own), else the CPU.

    Returns:
        `(model, tokenizer)`. The model is in evaluation mode.

    Raises:
        ValueError: For a name that is neither embedded, a folder, nor a reachable hub model, or a model that is spread
            over several devices.
    """
    import transformers

    if name == EMBEDDED_MODEL:
        with processes.main_first():
            folder = str(gemma_folder())
    else:
        folder = name
    if not Path(folder).is_dir() and not _on_hub(folder):
        raise InvalidInput(
            f"Unknown model {name!r}: use {EMBEDDED_MODEL!r} (embedded), a local transformers folder, or the "
            "id of a hub model (owner/name); the hub must be reachable, and gated models need a token (HF_TOKEN)."
        )
    wanted = as_dtype(dtype) if dtype else None
    options = {"device_map": {"": _device()} if device_map is None else device_map}
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            options["dtype"] = wanted or choose_dtype(config, _first_device(options["device_map"]))
            if load_in_8bit:
                options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise InvalidInput(f"Model {name!r} cannot be loaded: {_opening(error)}") from error
    _check_one_device(name, model)
    if load_in_8bit and not has_8bit_layers(model):
        raise InvalidInput(
            f"bitsandbytes converts no layer of {name!r} ({config.model_type}) to 8-bit, because the model uses a linear "
            "class of its own. Load it with load_in_8bit=False."
        )
    model.requires_grad_(False)
    if load_in_8bit:
        _let_go_of_the_file(model)
    model.config.use_cache = False
    model.ssetools_source = {
        "model": name,
        "revision": model_revision(name, model.config),
        "load_in_8bit": load_in_8bit,
    }
    return model.eval(), tokenizer


def model_source(model: nn.Module) -> dict:
    """Returns what identifies a loaded model in files: `model`, `revision`, `load_in_8bit`, `dtype`."""
    known = getattr(model, "ssetools_source", None)
    if known is None:
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        known = {"model": name, "revision": None, "load_in_8bit": has_8bit_layers(model)}
    return {**known, "dtype": str(next(p.dtype for p in model.parameters() if p.is_floating_point()))[6:]}


def model_precision(model: nn.Module) -> dict:
    """Returns what tells a model in 8 bits from the same one in 16: `load_in_8bit` and `dtype`."""
    source = model_source(model)
    return {key: source[key] for key in ("load_in_8bit", "dtype")}


def has_8bit_layers(model: nn.Module) -> bool:
    """Says whether any layer of the model is a `bitsandbytes` `Linear8bitLt`."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def int8_scales(module: nn.Module) -> torch.Tensor:
    """Returns the scale of each row of an 8-bit layer, whose weights are its codes times scale / 127."""
    # bitsandbytes moves the scales from the weight to the layer's state at the first forward pass.
    return module.weight.SCB if module.weight.SCB is not None else module.state.SCB


def body_of(model: nn.Module) -> nn.Module:
    """Returns the model without its language-model head."""
    return getattr(model, model.base_model_prefix)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of a model's text decoder, first to last.

    Raises:
        ValueError: If the model has no list of layers under a known name.
    """
    body = body_of(model)
    decoder = body.get_decoder() if hasattr(body, "get_decoder") else body
    for name, child in decoder.named_children():
        if name in _LAYER_LISTS and isinstance(child, nn.ModuleList):
            return list(child)
    raise InvalidInput(
        f"No decoder layers found in {type(model).__name__}: {type(decoder).__name__} has no list of modules called "
        f"{' or '.join(_LAYER_LISTS)}. Open an issue with the output of print(model)."
    )


def device_of(model: nn.Module) -> torch.device:
    """Returns the device that takes a model's token ids."""
    return model.get_input_embeddings().weight.device


def num_parameters(model: nn.Module) -> int:
    """Counts the model's weights, whether stored in 8 bits or more; tied ones once."""
    return sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into the one mode in which ssetools counts, trains and scores, and restores the old one.

    Dropout is off. On a CPU `bitsandbytes` computes differently in `train()` (weights dequantised, activations
    exact) and `eval()` (activations rounded to int8 too, and half as fast), so numbers from the two do not compare;
    8-bit layers always work in the first way here. On CUDA both are the same.
    """
    before = {module: module.training for module in model.modules()}
    model.eval()
    for module in before:
        if type(module).__name__ == "Linear8bitLt":
            module.training = True
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def choose_dtype(config, device: str) -> torch.dtype:
    """Chooses the dtype for a model on a device, and prints the reason once per process."""
    dtype, reason = _dtype_and_reason(config.model_type, device)
    _say_once(f"dtype {str(dtype)[6:]} on {device}: {reason}.")
    return dtype


def _dtype_and_reason(model_type: str, device: str) -> tuple[torch.dtype, str]:
    if device.startswith("cuda"):
        if torch.cuda.get_device_capability()[0] >= 8:
            return torch.bfloat16, "this GPU computes in bfloat16"
        if model_type in _NO_FP16_MODELS:
            return torch.float32, f"this GPU has no bfloat16 and {model_type} overflows float16"
        return torch.float16, "this GPU has no bfloat16"
    if device == "mps":
        return torch.float32, "bfloat16 is not reliable on MPS"
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, probe, bool)() for probe in probes):
        return torch.bfloat16, "this CPU has bfloat16 instructions"
    return torch.float32, "this CPU has no bfloat16 instructions, and emulating them is several times slower"


@functools.cache
def _say_once(message: str) -> None:
    print(message, flush=True)


def _let_go_of_the_file(model: nn.Module) -> None:
    """Copies what lies in main memory as it lies in the checkpoint, embeddings and norms.

    Otherwise they are views of the mapped file, all of which stays in memory as long as they do: the 16-bit weights of the
    8-bit layers too.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda:{processes.local_rank()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _first_device(device_map: str | dict) -> str:
    found = str(next(iter(device_map.values()))) if isinstance(device_map, dict) else device_map
    if found.isdigit():
        return f"cuda:{found}"
    return found if found.split(":")[0] in ("cpu", "cuda", "mps") else _device()  # "auto" and its like


def _check_one_device(name: str, model: nn.Module) -> None:
    """Refuses what deltas cannot lie beside: offloaded layers have no memory, and other devices are not asked."""
    devices = sorted({str(tensor.device) for tensor in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise InvalidInput(
            f"Model {name!r} does not lie on one device but on {', '.join(devices)} (meta: offloaded). Name one device "
            'that holds it, as in device_map={"": "cuda:0"}, load it in 8 bits, or spread it with `--shard`.'
        )


def _opening(error: Exception) -> str:
    """The first two lines of an error: the second often says where to go."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InvalidInput(f"Unknown dtype {dtype!r}: use float32, bfloat16 or float16.")
    return found


def _on_hub(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False
    return cached or ("/" in name and hub_reachable())


def model_revision(name: str, config=None) -> str | None:
    """Returns what tells two states of a model apart, without loading its weights.

    Args:
        name: Embedded name, hub id or local folder.
        config: The model's transformers config, where it is loaded already.

    Returns:
        A commit of the hub, a digest of the embedded file, or one of a local folder's config and of samples of its
        weights; None if there is none to be had.
    """
    if name == EMBEDDED_MODEL:
        return GGUF_SHA256
    if config is None:
        import transformers

        hub_reachable()  # without a network the libraries ask their caches, and do not retry for half a minute
        config = transformers.AutoConfig.from_pretrained(name)
    commit = getattr(config, "_commit_hash", None)
    if commit or not Path(name).is_dir():
        return commit
    digest = hashlib.sha256((Path(name) / "config.json").read_bytes())
    for path in sorted(p for ending in ("safetensors", "bin") for p in Path(name).glob(f"*.{ending}")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with open(path, "rb") as file:
            for place in range(_SAMPLES):
                file.seek(place * path.stat().st_size // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def other_model(made_for: Mapping, model: nn.Module) -> str | None:
    """Says in which way something was made for another model; None if for this one, whatever its folder is called.

    Args:
        made_for: "model" and "revision" of what was made, where they are known.
        model: The model at hand.
    """
    source = model_source(model)
    # A revision says more than a name: the same folder has several, and lies elsewhere on another machine.
    key = "model" if None in (made_for.get("revision"), source["revision"]) else "revision"
    if made_for.get(key) in (None, source[key]):
        return None
    return f"{key} {made_for[key]!r}, not {source[key]!r}"


def is_sharded(model: nn.Module) -> bool:
    """Says whether the model is spread over processes."""
    return getattr(model, "ssetools_sharded", False)


# --- a base spread over processes ---


def load_sharded(
    name: str, load_in_8bit: bool = False, dtype: torch.dtype | str | None = None
) -> tuple[nn.Module, object]:
    """Loads a model in main memory and spreads it over the processes; see `load_model` and `shard_model`.

    Every process reads the whole model, a layer of which at a time goes to its device.

    Returns:
        `(model, tokenizer)`.

    Raises:
        ValueError: For an 8-bit base, or a single process.
    """
    _check_can_shard(load_in_8bit)
    model, tokenizer = load_model(name, load_in_8bit=False, dtype=dtype, device_map={"": "cpu"})
    return shard_model(model), tokenizer


def shard_model(model: nn.Module) -> nn.Module:
    """Spreads the weights of a frozen model over all processes (FSDP), for models that fit no single device.

    Embeddings, final norm and head are gathered for the duration of a step, each layer only while it computes, and again
    in the backward pass. A process keeps 1/processes of the weights, and during a step also embeddings, head and one
    layer. Trained parameters stay whole in every process (`processes.average_gradients`). All processes must make the
    same number of forward passes (`processes.in_step`).

    Args:
        model: A causal language model in 16 or 32 bits, the same in all processes, nothing attached. `finetune` and
            `profile_languages` take it afterwards; saved adapters are the same as those of a whole model.

    Returns:
        The model.

    Raises:
        ValueError: For an 8-bit base, or a single process.
    """
    _check_can_shard(has_8bit_layers(model))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes.count(),))
    model.requires_grad_(False)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    # The loss reads the head's weight after the body has run, and never calls the head. So the head is gathered with the
    # body, although it is not part of it. A tied head shares its weight with the embeddings, which are part of the body.
    body = body_of(model)
    body.head_gathered_here = model.get_output_embeddings()
    fully_shard(body, mesh=mesh, reshard_after_forward=False)
    del body.head_gathered_here
    model.ssetools_sharded = True
    return model


def _check_can_shard(in_8bit: bool) -> None:
    if in_8bit:
        raise InvalidInput(
            "An 8-bit base cannot be sharded: bitsandbytes keeps the scales of an 8-bit layer beside its weight, and FSDP "
            "splits and gathers only the weight. Load the model in 16 bits (--16-bit). If it fits one device in 8 bits, "
            "leave sharding out: several processes share the text without it."
        )
    if processes.count() == 1:
        raise InvalidInput(
            "Sharding spreads a model over several processes, and there is one: start the command with "
            "`accelerate launch --num_processes N -m ssetools ...` (GPUs) or `torchrun --nproc_per_node N -m ssetools ...`."
        )
