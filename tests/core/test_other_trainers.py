"""Beside other tools: transformers' Trainer trains an attached adapter and nothing else, saves and resumes it."""

import copy
import gc
import weakref

import families
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from ssetools import Subnetwork, finetune, load_adapter
from ssetools.models import evaluation_mode
from ssetools.training.adapter import Adapter
from ssetools.training.methods import attach_method

ROWS = [{"input_ids": row, "labels": row} for row in families.tokens(batch=16, length=12).tolist()]
SAVED = "ignore:An adapter is attached to this model:UserWarning"


COMMON = {"per_device_train_batch_size": 4, "learning_rate": 0.01, "save_steps": 2, "report_to": [], "use_cpu": True}
COMMON |= {"disable_tqdm": True, "logging_strategy": "no", "seed": 1}


def trainer(model, folder, steps, **options):
    arguments = TrainingArguments(output_dir=str(folder), max_steps=steps, **COMMON, **options)
    return Trainer(model=model, args=arguments, train_dataset=ROWS)


def base_tensors(model):
    own = ("ssetools_adapter.", "lora_")
    return {n: x.detach().clone() for n, x in model.state_dict().items() if not any(part in n for part in own)}


@pytest.mark.filterwarnings(SAVED)
@pytest.mark.parametrize("load_in_8bit", [False, True])
@pytest.mark.parametrize("method", ["lape", "lora"])
def test_trainer_moves_the_adapter_alone_saves_and_resumes(method, load_in_8bit, tmp_path):
    torch.manual_seed(0)
    model = families.tiny_model("llama", load_in_8bit)
    adapter = attach_method(model, method, families.some_neurons(model))
    start, before = copy.deepcopy(adapter.state_dict()), base_tensors(model)
    trainer(model, tmp_path / "whole", 4).train()
    trained = copy.deepcopy(adapter.state_dict())
    assert any(not torch.equal(start[name], value) for name, value in trained.items())
    assert all(torch.equal(before[name], value) for name, value in base_tensors(model).items())
    with evaluation_mode(model):  # Trainer leaves LoRA's dropout on
        logits = model(input_ids=families.tokens()).logits

    adapter.load_state_dict(start)
    trainer(model, tmp_path / "whole", 4).train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in adapter.state_dict().items():
        torch.testing.assert_close(value, trained[name])

    adapter.detach()
    load_adapter(tmp_path / "whole" / "checkpoint-4", model)
    with evaluation_mode(model):
        torch.testing.assert_close(model(input_ids=families.tokens()).logits, logits)


def test_a_model_with_an_adapter_saves_the_adapter_and_says_so(tmp_path):
    model = families.tiny_model("llama")
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    with torch.no_grad():
        for delta in subnet.parameters():
            delta += 0.1
    tuned = model(input_ids=families.tokens()).logits
    with pytest.warns(UserWarning, match=r"trained numbers alone were saved to .* adapter.merge\(\) first"):
        model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="Unrecognized model"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    subnet.detach()
    load_adapter(tmp_path / "adapter", model)
    assert torch.equal(model(input_ids=families.tokens()).logits, tuned)
    Adapter.attached_to(model).merge().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(input_ids=families.tokens()).logits, tuned, rtol=1e-4, atol=1e-4)


def test_a_cast_model_keeps_its_deltas_in_float32_and_a_forgotten_one_is_freed():
    model = families.tiny_model("llama")
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    with torch.no_grad():
        for delta in subnet.parameters():
            delta += 1 / 3
    before = copy.deepcopy(subnet.state_dict())
    model.half().float()
    assert all(torch.equal(value, before[name]) for name, value in subnet.state_dict().items())
    held = weakref.ref(model)
    del model, subnet
    gc.collect()
    assert held() is None


def test_a_base_that_carries_a_peft_adapter_is_refused_before_training(word_tokenizer):
    from peft import LoraConfig

    model = families.tiny_model("llama")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM"))
    for base in (wrapped, model):
        with pytest.raises(ValueError, match=r"merge_and_unload\(\)"):
            finetune(base, word_tokenizer, ["w5 w6 w7"] * 20, neurons=[torch.arange(3)] * 2, window=16)


@pytest.mark.filterwarnings(SAVED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_sft_trainer_moves_the_subnetwork_alone(word_tokenizer, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    torch.manual_seed(0)
    model = families.tiny_model("llama")
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    before = base_tensors(model)
    rows = datasets.Dataset.from_list(
        [{"text": " ".join(f"w{3 + (i * k) % 80}" for k in range(1, 13))} for i in range(16)]
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=4, bf16=False, gradient_checkpointing=False, max_length=16, **COMMON
    )
    tokenizer = copy.deepcopy(word_tokenizer)  # SFTTrainer needs an end of text
    tokenizer.eos_token = tokenizer.pad_token = "w5"
    trl.SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer).train()
    assert any(bool(x.any()) for x in subnet.parameters())
    assert all(torch.equal(before[name], value) for name, value in base_tensors(model).items())
    with evaluation_mode(model):
        logits = model(input_ids=families.tokens()).logits
    subnet.detach()
    load_adapter(tmp_path / "checkpoint-4", model)
    with evaluation_mode(model):
        torch.testing.assert_close(model(input_ids=families.tokens()).logits, logits)
