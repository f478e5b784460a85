"""Tiny random models, one for each way in which a family writes its FFN."""

from __future__ import annotations

import tempfile

import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

_COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GATED = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}

CONFIGS = {
    "llama": ("LlamaConfig", _GATED),
    "mistral": ("MistralConfig", _GATED),
    "qwen2": ("Qwen2Config", _GATED),
    "qwen3": ("Qwen3Config", {**_GATED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**_GATED, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**_GATED, "head_dim": 8}),
    "cohere": ("CohereConfig", _GATED),
    "phi3": ("Phi3Config", _GATED),
    "glm4": ("Glm4Config", {**_GATED, "head_dim": 8}),
    "apertus": ("ApertusConfig", _GATED),
    "nemotron": ("NemotronConfig", _GATED),
    "bloom": ("BloomConfig", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neox": ("GPTNeoXConfig", {**_COMMON, "intermediate_size": 48}),
    "falcon": ("FalconConfig", {**_COMMON, "ffn_hidden_size": 48, "alibi": False}),
    "gpt2": ("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}),
    "starcoder2": ("Starcoder2Config", {**_GATED, "hidden_act": "gelu_pytorch_tanh"}),
    "opt": (
        "OPTConfig",
        {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1, "activation_function": "gelu"},
    ),
    "gptj": ("GPTJConfig", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "rotary_dim": 4}),
    "lfm2": ("Lfm2Config", {**_GATED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_GATED,
            "head_dim": 8,
            "activation_sparsity_pattern": [0.8, 0.0],
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
        },
    ),
    "xglm": ("XGLMConfig", {"vocab_size": 97, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}),
}


def tiny_model(family: str, load_in_8bit: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Returns a random model of `family`, frozen and in evaluation mode."""
    torch.manual_seed(seed)
    name, options = CONFIGS[family]
    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**options)).float()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the default, so that every part of the model matters
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    if load_in_8bit:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                quantization_config=BitsAndBytesConfig(load_in_8bit=True),
                device_map="cpu",
                dtype=dtype,
            )
    else:
        model = model.to(dtype)
    return model.requires_grad_(False).eval()


def tokens(batch: int = 3, length: int = 12, seed: int = 1) -> torch.Tensor:
    """Returns random token ids [batch, length]."""
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def some_neurons(model, seed: int = 2) -> list[torch.Tensor]:
    """Returns three neurons of the first layer and five of the last; an empty layer between would be allowed."""
    from ssetools.neurons.ffn import find_ffn_blocks

    generator = torch.Generator().manual_seed(seed)
    blocks = find_ffn_blocks(model)
    return [
        torch.randperm(block.num_neurons, generator=generator)[: 3 + 2 * layer].sort().values
        for layer, block in enumerate(blocks)
    ]


def word_tokenizer():
    """Returns a tokenizer of 97 words ("w3" is 3), with BOS 2, padding 0 and newline 1."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "\n": 1, "<bos>": 2, **{f"w{i}": i for i in range(3, 96)}, "<unk>": 96}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" "), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>")
