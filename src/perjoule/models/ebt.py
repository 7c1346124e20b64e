"""Energy-Based Transformer: a language model that finds the next token's distribution by descending a learned energy.

    h      = context stream over Embedding(tokens)               causal, its keys and values kept
    z_0    ~ N(0, start_std²), one vector over the vocabulary for each position
    p_k    = softmax(z_k + noise),  c_k = p_k·W,  E_k = energy(c_k | h),  δ_k = dΣE_k / dc_k
    z_k+1  = p_k - α·δ_k·Wᵀ                                      num_steps times
    loss   = mean over steps, or the last, of cross-entropy(z_k, labels)

There is no output matrix: the logits are read out through the candidates' embedding W (:meth:`EBT.candidate_matrix`),
and the energy's gradient with respect to p is never formed but in them. ebt_body.py holds the energy and its
*variants*, thinking.py the descent and how far gradients reach, layers/two_stream.py the attention, ebt_decode.py what
thinking without learning can do besides.

The function is that of the released code (golden files in tests/golden). What differs from it: the two streams are
computed apart, the context once per landscape instead of once per step, with its last block's output left out; the
slope is taken at c (dim numbers), not at p (vocab_size); detach modes do what they say; replayed samples return to the
memory; asking for more steps than there are landscapes repeats the last one; the energy head starts at zero, so that
training starts at ln(vocab_size) whatever the step size, which is scaled by :meth:`EBTSizes.initial_step_size`. In
evaluation there is no noise, every position starts from the same drawn z_0, and the loss is the last step's: evaluating
twice gives the same. From the paper's text it differs as the code does: a step starts from p, not from z. Packed
documents attend across their boundaries, unless the batch says which is which.

The published code's other options are fields of :class:`~perjoule.models.thinking.ThinkingConfig` and
:class:`~perjoule.models.ebt_sizes.EBTSizes`, all off: other starts, logits that are sharpened or bounded, softmax at
the first step alone, learned noise, other norms, activations, initial weights and rates. Dropout, which that code has
not, has one mask for all steps of a batch.

Training multiplies as much as (1 - 1/num_layers) + 2·steps Transformers of the same blocks where the context is shared
(``default``), plus ten instead of six times dim·vocab_size for each step. Memory for the backward pass
O(steps·(num_layers·(seq_len·dim + num_heads·seq_len²) + seq_len·vocab_size)) per sample.

Gladstone et al., Energy-Based Transformers are Scalable Learners and Thinkers, 2025.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn

from perjoule.core.errors import ConfigError
from perjoule.models import ebt_flops
from perjoule.models.contract import FlopsPerToken, Output
from perjoule.models.ebt_body import Context, EnergyBody
from perjoule.models.ebt_decode import LAST, Cache, Decoding, Verdict, best_row, better_of, deliberate
from perjoule.models.ebt_loss import Judge
from perjoule.models.ebt_replay import Recalled, Replay
from perjoule.models.ebt_simplex import SMALLEST_STEP_SIZE, FirstGuess, LearnedScale, Simplex, state_dtype
from perjoule.models.ebt_sizes import EBTSizes
from perjoule.models.layers.cache import Tokens, align
from perjoule.models.layers.dropout import same_masks
from perjoule.models.layers.language import embed, initialise, rated_groups
from perjoule.models.layers.linear import embedding_matrix
from perjoule.models.thinking import Energy, Path, Schedule, think


class EBTConfig(EBTSizes):
    """Sizes of an Energy-Based Transformer, and how it thinks while training."""

    def build(self, shape: Mapping[str, int]) -> EBT:
        """Build the model for a data set; see :meth:`LanguageSizes.build`."""
        return EBT(self, self.vocabulary(shape), shape["seq_len"])


class EBT(nn.Module):
    """Energy-based language model; see the module for the formula.

    On the meta device it is built in no time; ``to_empty`` and :meth:`reset_parameters` make it real.

    Args:
        config: sizes and how to think.
        vocab_size: rows of the embeddings.
        seq_len: the longest sequence, in tokens, unless there are no positions.
    """

    compilable: ClassVar[bool] = False
    """torch.compile cannot differentiate twice."""

    masks_documents: ClassVar[bool] = True
    """Neither tokens nor candidates see another document of a batch with ``documents``."""

    def __init__(self, config: EBTSizes, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.seq_len = config, vocab_size, seq_len
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.candidate_embedding = None if config.tie_candidates else nn.Embedding(vocab_size, config.dim)
        self.body = EnergyBody(config, seq_len)
        thinking = config.thinking
        first = config.initial_step_size(vocab_size)
        self.alpha = LearnedScale(first, thinking.learn_step_size, SMALLEST_STEP_SIZE)
        self.noise = LearnedScale(thinking.langevin_noise, True, 0.0) if thinking.learn_noise else None
        self.guess = FirstGuess(thinking, vocab_size)
        self.replay = None
        if thinking.replay_fraction > 0:
            self.replay = Replay(thinking.replay_capacity, seq_len, vocab_size, thinking.replay_max_age)
        self.decoding = Decoding()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every weight from torch's default generator, and forget what is remembered.

        It is that of :func:`initialise`. The energy head is 0: all energies are equal, the first state is p, and the
        loss is ln(vocab_size). Modulations of ``adaln`` start with gates near 1 and the rest near 0; those of
        ``adaln_zero`` with 0 in all, so that blocks change nothing.
        """
        config = self.config
        initialise(self, self.body.blocks, config.init_std, config.init, config.init_gain)
        self.body.reset_modulations(config.init_std)
        nn.init.zeros_(self.body.head.weight)
        self.guess.reset_parameters()
        for scale in (self.alpha, self.noise):
            if scale is not None:
                nn.init.ones_(scale.factor)
        if self.replay is not None:
            self.replay.forget()

    def candidate_matrix(self, device: torch.device | None = None) -> Float[Tensor, "vocab dim"]:
        """Return the candidates' embedding, through which logits are read out.

        Args:
            device: of the inputs; None is torch's default.
        """
        embedding = self.embedding if self.candidate_embedding is None else self.candidate_embedding
        return embedding_matrix(embedding, self.vocab_size, device)

    @property
    def initial_step_size(self) -> float:
        """Return α at the beginning."""
        return self.alpha.initial

    @property
    def step_size_factor(self) -> nn.Parameter:
        """Return the parameter that multiplies it."""
        return self.alpha.factor

    @property
    def step_size(self) -> Float[Tensor, ""]:
        """Return α."""
        step_size: Tensor = self.alpha()
        return step_size

    def forward(
        self,
        tensors: Mapping[str, Tensor],
        with_logits: bool = False,
        start: Float[Tensor, "batch seq vocab"] | None = None,
    ) -> Output:
        """Compute the loss of one batch.

        While training it is what the configuration asks for, on the batch and what replay adds to it. In evaluation
        it is the cross-entropy of the last step's logits, the same every time.

        Args:
            tensors: ``input_ids`` and ``labels``; a label of -100 is ignored. With ``documents``, no token and no
                candidate sees another document of its row; see layers/documents.py.
            with_logits: return the last step's logits of the batch as well.
            start: first guesses instead of drawn ones; keeps replay out.

        Raises:
            ConfigError: if the sequence is longer than the model was built for.
            TrainingDiverged: if a slope is not finite.
        """
        input_ids, labels, thinking = tensors["input_ids"], tensors["labels"], self.config.thinking
        documents, batch, recalled = tensors.get("documents"), len(input_ids), None
        replay = self.replay if self.training and start is None else None
        if replay is not None:
            recalled = replay.recall(round(thinking.replay_fraction * batch), input_ids.shape[1])
        if recalled is not None:
            input_ids = torch.cat((input_ids, recalled.input_ids))
            labels = torch.cat((labels, recalled.labels))
            documents = None if documents is None else torch.cat((documents, recalled.documents))
        weight = self.candidate_matrix(input_ids.device)
        if start is None:
            start = self._start(input_ids, recalled, weight)
        energy, last_state = self.energy(input_ids, documents), with_logits or replay is not None
        last_state = last_state or self.config.loss_chunk_rows is None or thinking.shapes_logits
        path = self.think(energy, start, last_state, weight)
        judge = Judge(thinking, weight, self.config.loss_chunk_rows)
        loss, metrics = judge(path, labels, self.training)
        metrics["step_size"] = self.step_size.detach()
        if thinking.contrastive > 0 and self.training:
            contrast = judge.contrast(path, labels, energy, self.config.num_landscapes - 1)
            metrics["contrastive_loss"] = contrast.detach()
            loss = loss + thinking.contrastive * contrast
        if replay is not None:
            replay.remember(input_ids, labels, path.states[-1].detach(), recalled, documents)
        return Output(loss, path.states[-1][:batch] if with_logits else None, metrics)

    def _start(self, input_ids: Tensor, recalled: Recalled | None, weight: Tensor) -> Tensor:
        """Return first guesses: drawn for each position, or one for all in evaluation; then the recalled ones."""
        if not self.training:
            return self.guess.fixed(input_ids, 1, weight)[0]
        start: Tensor = self.guess(input_ids, weight)
        if recalled is not None:
            start = torch.cat((start[: -len(recalled.states)], recalled.states.to(start.dtype)))
        return start

    def think(self, energy: Energy, start: Tensor, last_state: bool, weight: Tensor | None = None) -> Path:
        """Think as in training, or without chance in evaluation."""
        thinking, step_size, steps = self.config.thinking, self.step_size, self.config.thinking.most_steps
        noise_std: Tensor | float = 0.0
        if self.training:
            steps = int(torch.randint(thinking.steps, steps + 1, (), device="cpu"))
            noise_std = thinking.langevin_noise if self.noise is None else self.noise()
            spread = thinking.random_step_size
            if spread > 1:
                low, high = step_size / spread, step_size * spread
                step_size = low + torch.rand(*start.shape[:2], 1, device=start.device) * (high - low)
        schedule = Schedule.of(steps, thinking.detach)
        space = Simplex(self.candidate_matrix(start.device) if weight is None else weight, thinking)
        return think(energy, space, start, schedule, step_size, noise_std, last_state)

    def energy(self, input_ids: Tokens, documents: Int32[Tensor, "batch seq"] | None = None) -> Energy:
        """Return the energies, step by step, of embedded candidates (batch, seq, dim) for the tokens behind these.

        The context is read once per landscape, when it is first needed. Dropout has the same masks at every step: an
        energy is descended that stays what it is.

        Args:
            input_ids: whole sequences, without padding.
            documents: of the tokens, where they shall not see each other's.

        Raises:
            ConfigError: if the sequence is longer than the model was built for.
        """
        self._check_length(input_ids.shape[1])
        tokens, contexts, learned = embed(self.embedding, input_ids), dict[int, Context](), torch.is_grad_enabled()
        drops = self.training and max(self.config.dropout, self.config.activation_dropout) > 0
        seed = int(torch.randint(2**62, (), device="cpu")) if drops else None

        def energy(candidates: Tensor, step: int) -> Tensor:
            landscape = self.body.landscape_of(step)
            if landscape not in contexts:
                with torch.set_grad_enabled(learned), same_masks(seed, tokens.device):
                    contexts[landscape] = self.body.read(tokens, landscape, documents=documents)
            with same_masks(None if seed is None else seed + 1, tokens.device):
                return self.body.energy(candidates, contexts[landscape])

        return energy

    def _check_length(self, num_tokens: int) -> None:
        if self.config.positions != "none" and num_tokens > self.seq_len:
            raise ConfigError(
                f"a sequence of {num_tokens} tokens does not fit the model, which was built for seq_len "
                f"{self.seq_len}; accepted: 1 to {self.seq_len} tokens"
            )

    @torch.no_grad()
    def deliberate(
        self,
        input_ids: Tokens,
        decoding: Decoding | None = None,
        staged: bool = False,
        documents: Int32[Tensor, "batch seq"] | None = None,
    ) -> Verdict:
        """Think about the token behind each of these: for curves of loss and energy over steps.

        Args:
            input_ids: whole sequences, without padding.
            decoding: how; null is :attr:`decoding`.
            staged: keep every stage; with several candidates, none is kept.
            documents: of the tokens, where they shall not see each other's.

        Raises:
            ConfigError: if the sequence is longer than the model was built for.
            TrainingDiverged: if a slope is not finite.
        """
        decoding = decoding or self.decoding
        energy, weight, verdict = self.energy(input_ids, documents), self.candidate_matrix(input_ids.device), None
        for start in self.guess.fixed(input_ids, decoding.candidates, weight):
            other = self._deliberate(energy, weight, start, decoding, staged)
            verdict = other if verdict is None else better_of(verdict, other)
        assert verdict is not None
        return verdict

    def _deliberate(
        self,
        energy: Energy,
        weight: Tensor,
        start: Tensor,
        decoding: Decoding,
        staged: bool = False,
        scored: bool = True,
    ) -> Verdict:
        steps = decoding.steps or self.config.thinking.most_steps
        space, landscape_of = Simplex(weight, self.config.thinking), self.body.landscape_of
        step_size = self.step_size if decoding.step_size is None else torch.tensor(decoding.step_size)
        step_size = step_size * decoding.step_size_scale
        return deliberate(energy, space, start, step_size, steps, decoding, landscape_of, staged, scored)

    @torch.no_grad()
    def prefill(
        self,
        input_ids: Tokens,
        mask: Bool[Tensor, "batch seq"] | None = None,
        decoding: Decoding | None = None,
    ) -> tuple[Float[Tensor, "batch vocab"], Cache]:
        """Read prompts; see :class:`~perjoule.models.contract.Decoder`.

        Args:
            input_ids: tokens, padded on the left.
            mask: True for real tokens; None if all are.
            decoding: how to think about this and the next tokens; None is :attr:`decoding`.

        Returns:
            The next token's logits in at least float32, and the cache: keys and values under every landscape in use.

        Raises:
            ConfigError: if a prompt is longer than the model's positions allow, empty, or padded elsewhere.
            TrainingDiverged: if a slope is not finite.
        """
        prompts, decoding = align(input_ids, mask), decoding or self.decoding
        self._check_length(prompts.longest)
        # Padding in front of all rows is cut off; the others' stays where it is, so that all end together.
        input_ids, mask = input_ids[:, -prompts.longest :], None if mask is None else mask[:, -prompts.longest :]
        steps = decoding.steps or self.config.thinking.most_steps
        tokens = embed(self.embedding, input_ids)
        real = None if mask is None or bool(mask.all()) else mask
        used = range(steps) if decoding.landscape == "own" else [LAST]
        landscapes = sorted({self.body.landscape_of(step) for step in used})
        contexts = {landscape: self.body.read(tokens, landscape, real) for landscape in landscapes}
        weight = self.candidate_matrix(input_ids.device)
        last = input_ids[:, -1:]
        starts = torch.cat([start[:1] for start in self.guess.fixed(last, decoding.candidates, weight)], dim=1)
        cache = Cache(contexts, input_ids.shape[1], starts, decoding)
        return self._next(cache, weight, last), cache

    @torch.no_grad()
    def decode(self, token: Int64[Tensor, " batch"], cache: Cache) -> tuple[Float[Tensor, "batch vocab"], Cache]:
        """Read one more token of each row; see :class:`~perjoule.models.contract.Decoder`.

        Args:
            token: one for each row.
            cache: as returned before.

        Returns:
            The logits of the token behind it in at least float32, and the cache.

        Raises:
            ConfigError: if there is no position left.
            TrainingDiverged: if a slope is not finite.
        """
        self._check_length(cache.num_tokens + 1)
        embedded = self.embedding(token).unsqueeze(1)
        contexts = {landscape: self.body.extend(context, embedded) for landscape, context in cache.contexts.items()}
        cache = replace(cache, contexts=contexts, num_tokens=cache.num_tokens + 1)
        return self._next(cache, self.candidate_matrix(token.device), token.unsqueeze(1)), cache

    def _next(self, cache: Cache, weight: Tensor, last: Int64[Tensor, "batch 1"]) -> Tensor:
        """Think about the token behind what was read; several candidates are rows that share the context."""

        def energy(candidates: Tensor, step: int) -> Tensor:
            return self.body.energy(candidates, cache.contexts[self.body.landscape_of(step)], at_end=True)

        several = cache.decoding.candidates > 1
        starts = cache.starts.expand(len(last), -1, -1)
        if self.config.thinking.start == "recent":
            starts = torch.cat((self.guess(last, weight), starts[:, 1:]), dim=1)
        verdict = self._deliberate(energy, weight, starts, cache.decoding, scored=several)
        logits = best_row(verdict) if several else verdict.logits[:, 0]
        return logits.to(state_dtype(weight))

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token; see :mod:`perjoule.models.ebt_flops`. Replayed samples come on top."""
        return ebt_flops.flops_per_token(self.config, self.vocab_size, seq_len)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights in groups for the optimizer: ``{"params": […], "weight_decay": bool, "lr_scale": float}``.

        Matrices decay, the embeddings too; norm weights, modulations' biases, the step size and a learned noise do not.
        Those two learn ``step_size_lr`` times as fast, and as the schedule multiplies every group's rate, they decay as
        far; the embeddings learn ``embedding_lr`` times as fast.
        """
        scales = [self.alpha] if self.noise is None else [self.alpha, self.noise]
        factors = [scale.factor for scale in scales]
        apart = {id(factor) for factor in factors}
        weights = [parameter for parameter in self.parameters() if id(parameter) not in apart]
        groups = [{"lr_scale": 1.0, **group} for group in rated_groups(self, weights, self.config.embedding_lr)]
        if learned := [factor for factor in factors if factor.requires_grad]:
            groups.append({"params": learned, "weight_decay": False, "lr_scale": self.config.thinking.step_size_lr})
        return groups
