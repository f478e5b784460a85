"""Cross-entropy over blocks of the vocabulary, so that logits [tokens, vocabulary] never exist.

With vocabularies of 128k to 262k words, logits are the largest tensor of a small run, and every pass over them goes
through main memory. Here a block of the vocabulary is scored for all tokens at once while running sums of the softmax
are kept, as attention kernels do with keys: sum_v exp(l_v) gives the loss, and sum_v exp(l_v) w_v, the gradient with
respect to the hidden states. A block stays in the cache, and nothing of it is kept.

On a CPU, where the two products of a large head take most of a step, the second is computed for likely words alone: the
loss stays exact. The error of the gradient is measured on some tokens of each step, and a step in which it exceeds that of
rounding to bfloat16 is computed in full.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssetools.errors import InvalidInput
from ssetools.models import body_of, device_of, int8_scales

IGNORED = -100
"""Label of a token that no loss is taken on, as everywhere in transformers."""

BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
LARGE_VOCABULARY = 65_536
"""Up to this many words, no word is left out of the gradient's product."""

_LIKELY = 2**-16  # probability
_TOLERATED = 0.0016  # error over the norm of the gradient, that of rounding to bfloat16
_MEASURED = 16  # tokens on which the error is measured, at even distances
_MANY = 64  # tokens from which on words are left out; fewer leave out too much
_ROUNDED_TO = 128  # words
_CHECKED: weakref.WeakSet = weakref.WeakSet()


class Head:
    """The language-model head of a model, 8-bit or not, read a block of the vocabulary at a time.

    Attributes:
        weight: The head's weight [vocabulary, hidden], possibly int8, possibly tied to the embeddings.
        vocabulary: Number of rows of the weight.
        block_bytes: Size of a block of float32 logits.
    """

    def __init__(self, model: Any):
        self.module = model.get_output_embeddings()
        self.weight, self.bias = self.module.weight, getattr(self.module, "bias", None)
        self.vocabulary = self.weight.shape[0]
        self.block_bytes = BLOCK_BYTES["cpu" if self.weight.device.type == "cpu" else "cuda"]
        config = model.config.get_text_config()
        self.scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        self.scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        self.cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        self._memory: Tensor | None = None

    def blocks(self, tokens: int) -> list[slice]:
        """Cuts the vocabulary into blocks whose float32 logits for `tokens` tokens stay in the cache."""
        size = max(16, self.block_bytes // (4 * tokens))
        return [slice(i, min(i + size, self.vocabulary)) for i in range(0, self.vocabulary, size)]

    def rows(self, which: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Returns rows of the weight [rows, hidden]; those of an 8-bit head are dequantised."""
        if self.weight.dtype != torch.int8:
            return self.weight[which]
        return (self.weight[which].float() * (int8_scales(self.module)[which].float() / 127)[:, None]).to(dtype)

    def logits(self, hidden: Tensor, which: slice | Tensor, rows: Tensor | None = None) -> Tensor:
        """Computes float32 logits [tokens, block], with the scaling or soft cap that the model applies.

        Memory of the logits of an earlier block is used again.
        """
        rows = self.rows(which, hidden.dtype) if rows is None else rows
        size = len(hidden) * len(rows)
        if self._memory is None or len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.float32, device=hidden.device)
        logits = self._memory[:size].view(len(hidden), len(rows))
        bias = None if self.bias is None else self.bias[which]
        if hidden.dtype == torch.float32:
            torch.mm(hidden, rows.T, out=logits) if bias is None else torch.addmm(bias, hidden, rows.T, out=logits)
        else:
            logits.copy_(F.linear(hidden, rows, bias))
        return self._shaped(logits)

    def label_logits(self, hidden: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Computes the float32 logit of each token's label [tokens]; `rows` are the weight's rows of the labels."""
        raw = (hidden.float() * rows.float()).sum(-1)
        return self._shaped(raw if self.bias is None else raw + self.bias[labels].float())

    def _shaped(self, raw: Tensor) -> Tensor:
        if self.scale != 1.0:
            raw.mul_(self.scale)
        return raw if self.cap is None else raw.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Returns d logits / d (hidden @ weight.T): the derivative of scaling and soft cap."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap) ** 2)


class SoftmaxSums:
    """Running maximum and sum of exp(logits) of each token, over blocks of the vocabulary."""

    def __init__(self, tokens: int, device: torch.device):
        self.largest = torch.full((tokens, 1), -torch.inf, device=device)
        self.total = torch.zeros(tokens, 1, device=device)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in a block; returns exp(logits - largest) in its memory, and what to multiply earlier sums by."""
        largest = torch.maximum(self.largest, logits.amax(-1, keepdim=True))
        rescale = (self.largest - largest).exp_()
        powers = logits.sub_(largest).exp_()
        self.total.mul_(rescale).add_(powers.sum(-1, keepdim=True))
        self.largest = largest
        return powers, rescale

    def log_total(self) -> Tensor:
        """Returns ln sum exp(logits) [tokens, 1]."""
        return self.largest + self.total.log()


def token_losses(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Computes the negative log-likelihood of each token after the first, without gradients.

    Args:
        model: A causal language model.
        input_ids: LongTensor [batch, window], nothing padded.

    Returns:
        FloatTensor [batch, window - 1], in nats.
    """
    check_head(model)
    with torch.no_grad():
        hidden = body_of(model)(input_ids=input_ids, use_cache=False)[0][:, :-1].flatten(0, 1)
        head, labels = Head(model), input_ids[:, 1:].flatten()
        sums = SoftmaxSums(len(labels), hidden.device)
        for block in head.blocks(len(labels)):
            sums.add(head.logits(hidden, block))
        found = head.label_logits(hidden, labels, head.rows(labels, hidden.dtype))
        return (sums.log_total().squeeze(-1) - found).view(input_ids.shape[0], -1)


def chunked_loss(model: nn.Module, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
    """Computes the mean next-token loss of a batch, differentiable with respect to whatever the model trains.

    A frozen head costs one product per block in each direction and keeps nothing; a trained one is scored once more, and
    no word is left out of its own gradient.

    Args:
        model: A causal language model.
        input_ids: LongTensor [batch, window].
        labels: LongTensor [batch, window], `IGNORED` where no loss is taken, but not everywhere; None takes every token.

    Returns:
        Scalar, in nats per labelled token. `backward()` equals that of the plain loss to rounding: to that of bfloat16 on a
        CPU with more than `LARGE_VOCABULARY` words, else to that of the model's dtype.
    """
    check_head(model)
    labels = (input_ids if labels is None else labels)[:, 1:].flatten()
    hidden = body_of(model)(input_ids=input_ids, use_cache=False)[0][:, :-1].flatten(0, 1)
    if (labels == IGNORED).any():
        hidden, labels = hidden[labels != IGNORED], labels[labels != IGNORED]
    if not len(labels):
        raise InvalidInput("No token is labelled, so there is no loss to take.")
    head = Head(model)
    return _BlockwiseLoss.apply(hidden, head.weight, head.bias, labels, head)


class _BlockwiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, head: Head) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        # On a GPU, choosing rows costs more than their product.
        likely = wanted and hidden.device.type == "cpu" and head.vocabulary > LARGE_VOCABULARY and len(labels) >= _MANY
        sums, pulled, missed = _softmax_times_weight(hidden, labels, head, wanted, likely)
        own = head.rows(labels, hidden.dtype)
        label_logits = head.label_logits(hidden, labels, own)
        gradients: list[Any] = [None, None, None]
        if pulled is not None:
            pulled = _less_labels(pulled, sums, head, label_logits, own)
            if likely and missed.norm() > _TOLERATED * pulled[:: len(labels) // _MEASURED].norm():
                sums, pulled, _ = _softmax_times_weight(hidden, labels, head, wanted, likely=False)
                pulled = _less_labels(pulled, sums, head, label_logits, own)
            gradients[0] = pulled.div_(len(labels))  # rounded to the model's dtype once it is scaled
        if any(ctx.needs_input_grad[1:3]):
            gradients[1:] = _head_gradients(head, hidden, labels, sums, label_logits)
        ctx.gradients, ctx.dtype = gradients, hidden.dtype
        return (sums.log_total().squeeze(-1) - label_logits).mean()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scaled = [None if g is None else g * grad_output.to(g.dtype) for g in ctx.gradients]
        if scaled[0] is not None:
            scaled[0] = scaled[0].to(ctx.dtype)
        return *scaled, None, None


def _softmax_times_weight(hidden: Tensor, labels: Tensor, head: Head, wanted: bool, likely: bool) -> tuple:
    """Takes the softmax's sums and, if `wanted`, its product with the weight, before the division by the softmax's total.

    Returns:
        The sums, the product [tokens, hidden] in float32 (or None), and with `likely` the part of the gradient of every
        so many tokens that `_add_likely` leaves out [tokens, hidden], divided by the total.
    """
    sums, every = SoftmaxSums(len(labels), hidden.device), max(1, len(labels) // _MEASURED)
    pulled = torch.zeros_like(hidden, dtype=torch.float32) if wanted else None
    missed = torch.zeros_like(hidden[::every], dtype=torch.float32)
    blocks = head.blocks(len(labels))
    if likely:
        labelled = head.logits(hidden, labels.unique()[: blocks[0].stop]).logsumexp(-1, keepdim=True)
    for block in blocks:
        rows = head.rows(block, hidden.dtype)
        logits = head.logits(hidden, block, rows)
        slope = head.slope(logits)
        powers, rescale = sums.add(logits)
        if pulled is None:
            continue
        powers = powers if isinstance(slope, float) else powers.mul_(slope)
        pulled.mul_(rescale)
        if likely:
            missed.mul_(rescale[::every]).add_(_add_likely(pulled, powers, rows, sums, labelled, every))
        else:
            pulled.add_(powers.to(rows.dtype) @ rows)
    return sums, pulled, missed.div_(sums.total[::every]).mul_(head.scale if head.cap is None else 1.0)


def _add_likely(
    pulled: Tensor, powers: Tensor, rows: Tensor, sums: SoftmaxSums, labelled: Tensor, every: int
) -> Tensor:
    """Adds a block's powers [tokens, words] @ rows to `pulled`, and returns what it leaves out of each `every`-th token.

    There is one product for likely words, and one row in place of all others. A word is left out if its probability
    stays below `_LIKELY` for every token. The running sum of a softmax can only be too small, so that a probability can
    only be overestimated; the log-sum over the labels' words, `labelled`, is known before the first block. What a token
    gives to the words that are left out goes to their mean row, weighted by the words' probability over all tokens.
    """
    scale = torch.minimum(1 / sums.total, (sums.largest - labelled).exp())
    highest = (powers * scale).amax(0)
    # A product of a new shape makes oneDNN compile and keep a kernel, so that numbers of words are rounded up.
    count = -(-int((highest >= _LIKELY).sum()) // _ROUNDED_TO) * _ROUNDED_TO
    likely = highest.topk(min(count, len(highest)), sorted=False).indices
    pulled.add_(powers.index_select(1, likely).to(rows.dtype) @ rows.index_select(0, likely))
    others = powers.index_fill_(1, likely, 0)
    weights = scale.T @ others
    mean = (weights.to(rows.dtype) @ rows).float() / weights.sum().clamp_min(1e-30)
    mass = others.sum(-1, keepdim=True)
    pulled.addmm_(mass, mean)
    return others[::every].to(rows.dtype) @ rows - mass[::every] * mean


def _less_labels(pulled: Tensor, sums: SoftmaxSums, head: Head, label_logits: Tensor, own: Tensor) -> Tensor:
    """Returns the gradient of the tokens' summed losses: the softmax's mean row less the label's."""
    pulled = pulled / sums.total * (head.scale if head.cap is None else 1.0)
    return pulled - (torch.ones_like(label_logits) * head.slope(label_logits))[:, None] * own


def _head_gradients(head: Head, hidden: Tensor, labels: Tensor, sums: SoftmaxSums, label_logits: Tensor) -> tuple:
    """Gradients of a trained head's weight and bias: a second pass, now that the softmax's total is known."""
    log_total, weight = sums.log_total(), torch.empty_like(head.weight)
    bias = None if head.bias is None else torch.empty_like(head.bias)
    for block in head.blocks(len(labels)):
        logits = head.logits(hidden, block)
        slope = head.slope(logits)
        shares = logits.sub_(log_total).exp_().mul_(slope).div_(len(labels))
        weight[block] = shares.to(hidden.dtype).T @ hidden
        if bias is not None:
            bias[block] = shares.sum(0).to(bias.dtype)
    own = torch.ones_like(label_logits) * head.slope(label_logits) / len(labels)
    weight.index_add_(0, labels, -(own[:, None] * hidden).to(weight.dtype))
    if bias is not None:
        bias.index_add_(0, labels, -own.to(bias.dtype))
    return weight, bias


def check_head(model: nn.Module) -> None:
    """Compares `Head` with the model's own logits, once per model: a head we do not know must not pass."""
    if model in _CHECKED:
        return
    ids = torch.arange(3, 7, device=device_of(model))[None]
    with torch.no_grad():
        hidden = body_of(model)(input_ids=ids, use_cache=False)[0].flatten(0, 1)
        head = Head(model)  # after the body has run: it gathers a sharded head
        ours = head.logits(hidden, slice(0, head.vocabulary))
        theirs = model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
    # 16-bit and 8-bit heads round; a scale or a cap that we miss does more than that.
    allowed = 1e-4 if head.weight.dtype == torch.float32 else 2e-2
    differ = ((ours - theirs).norm() / theirs.norm()).item()
    if not differ < allowed:
        raise InvalidInput(
            f"{type(model).__name__} changes its logits after the head in a way that ssetools does not know "
            f"(relative difference {differ:.3g}). Please open an issue naming the model."
        )
    _CHECKED.add(model)
