"""The one description of a decoder: GPT-2, Llama and Gemma are values of it, not classes."""

import dataclasses

from llmstack.errors import BadInput


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer. Sizes are counts; letters in brackets are those of the alphabet."""

  vocab: int  # [V]
  layers: int  # [L]
  width: int  # [D]
  heads: int  # [N]
  kv_heads: int  # [K], divides heads
  head_width: int  # [H], even under RoPE
  ff: int  # [F]
  length: int  # longest sequence, tokens
  norm: str  # 'rms' | 'layer'
  norm_eps: float
  post_norm: bool  # a second norm on each branch's output (Gemma 2)
  act: str  # 'silu' | 'gelu' (tanh approximation)
  gated: bool  # act(gate) * up instead of act(up)
  bias: bool  # on every matmul and on LayerNorm
  positions: str  # 'rope' | 'learned'
  rope_theta: float
  qk_norm: bool  # RMSNorm on q and k per head before RoPE
  attn_softcap: float | None  # c * tanh(scores / c)
  logit_softcap: float | None
  windows: tuple[int, ...]  # cycled over layers; tokens a query sees, itself included; 0 = all
  tied: bool  # head = embed.T
  scale_embed: bool  # embeddings times sqrt(D) (Gemma)
  dropout: float  # on embeddings and on each branch's output; none on attention weights
  init_std: float  # wo and w_down are further divided by sqrt(2 L)
  dtype: str  # compute: 'float32' | 'bfloat16'; parameters are float32
  attention: (
    str  # of packed rows: 'einsum' (the reference) | 'blocks' (CPU) | 'xla' | 'cudnn' | 'splash'; a cache uses einsum
  )
  scan: bool  # lax.scan over layers instead of unrolling; parameters are stacked either way
  remat: str  # 'none' | 'dots' (keep matmul outputs) | 'full' (keep layer inputs)

  def __post_init__(self):
    object.__setattr__(self, 'windows', tuple(self.windows))
    choices = dict(
      norm=('rms', 'layer'), act=('silu', 'gelu'), positions=('rope', 'learned'), dtype=('float32', 'bfloat16'),
      attention=('einsum', 'blocks', 'xla', 'cudnn', 'splash'), remat=('none', 'dots', 'full'),
    )  # fmt: skip
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise BadInput(f'model.{name} = {getattr(self, name)!r}: choose one of {", ".join(allowed)}')
    for name in ('vocab', 'layers', 'width', 'heads', 'kv_heads', 'head_width', 'ff', 'length'):
      if getattr(self, name) < 1:
        raise BadInput(f'model.{name} = {getattr(self, name)} must be at least 1')
    if self.heads % self.kv_heads:
      raise BadInput(f'model.heads = {self.heads} is not a multiple of model.kv_heads = {self.kv_heads}')
    if self.positions == 'rope' and self.head_width % 2:
      raise BadInput(f'model.head_width = {self.head_width} must be even under RoPE')
    if not 0 <= self.dropout < 1:
      raise BadInput(f'model.dropout = {self.dropout} must be at least 0 and below 1')
    for name in ('attn_softcap', 'logit_softcap'):
      if getattr(self, name) is not None and getattr(self, name) <= 0:
        raise BadInput(f'model.{name} = {getattr(self, name)} must be positive, or None for none')
    if min(self.windows, default=0) < 0:
      raise BadInput(f'model.windows = {self.windows}: a window is a number of tokens, 0 for all')

  @property
  def window_of_layer(self):
    """Returns one window per layer; a layer without one sees `length` tokens."""
    cycle = self.windows or (0,)
    return tuple(cycle[i % len(cycle)] or self.length for i in range(self.layers))

  @property
  def sizes(self):
    """Returns {letter: size} for the letters of parameters."""
    return dict(
      V=self.vocab, L=self.layers, D=self.width, N=self.heads, K=self.kv_heads, H=self.head_width,
      F=self.ff, S=self.length,
    )  # fmt: skip


def describe(cfg):
  """Returns the config as plain JSON values; described(describe(cfg)) == cfg."""
  return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(cfg).items()}


def described(values):
  """Returns the ModelConfig of a checkpoint. One saved before `attention` could be chosen ran einsum."""
  return ModelConfig(**{'attention': 'einsum'} | values)


def parameters(cfg):
  """Returns the number of parameters, and how many of them a token's forward pass multiplies with."""
  attn = cfg.width * cfg.head_width * (2 * cfg.heads + 2 * cfg.kv_heads)
  matmul = cfg.layers * (attn + cfg.width * cfg.ff * (3 if cfg.gated else 2)) + cfg.vocab * cfg.width
  norms = cfg.width * (1 + cfg.layers * (4 if cfg.post_norm else 2)) * (2 if cfg.norm == 'layer' and cfg.bias else 1)
  norms += cfg.layers * 2 * cfg.head_width if cfg.qk_norm else 0
  biases = cfg.layers * (
    cfg.head_width * (cfg.heads + 2 * cfg.kv_heads) + cfg.ff * (2 if cfg.gated else 1) + 2 * cfg.width
  )
  total = matmul + norms + (biases if cfg.bias else 0)
  total += 0 if cfg.tied else cfg.vocab * cfg.width
  total += cfg.length * cfg.width if cfg.positions == 'learned' else 0
  return total, matmul


def train_flops_per_token(cfg, length):
  """Returns FLOPs per trained token: 6 per matmul parameter plus 12 L N H per attended key.

  A query at position t sees min(t + 1, window) keys: causal masking is counted, unlike in PaLM's
  appendix B, which counts every key; figures here are lower by up to half the attention term.
  """
  keys = sum(w if w < 1 else (w * length - w * (w - 1) / 2) / length for w in
             (min(w, length) for w in cfg.window_of_layer))  # fmt: skip
  return 6 * parameters(cfg)[1] + 12 * cfg.heads * cfg.head_width * keys
