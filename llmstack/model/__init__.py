"""The decoder: the only room that imports flax."""

from llmstack.model.cache import allocate
from llmstack.model.config import ModelConfig, describe, described, parameters, train_flops_per_token
from llmstack.model.kernels import check as check_attention
from llmstack.model.transformer import forward, init, ready, unembed

__all__ = [
  'ModelConfig', 'allocate', 'check_attention', 'describe', 'described', 'forward', 'init', 'parameters',
  'ready', 'train_flops_per_token', 'unembed',
]  # fmt: skip
