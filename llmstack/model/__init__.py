"""The decoder: the only room that imports flax."""

from llmstack.model.cache import allocate
from llmstack.model.config import ModelConfig, describe, described, parameters, train_flops_per_token
from llmstack.model.kernels import check as check_attention
from llmstack.model.lora import Lora, adapter_parameters, combine, init_adapters, merge, repack, unmerge
from llmstack.model.quant import dequantise, nbytes, quantise
from llmstack.model.transformer import forward, init, ready, unembed, value_head, values

__all__ = [
  'Lora', 'ModelConfig', 'adapter_parameters', 'allocate', 'check_attention', 'combine', 'dequantise', 'describe',
  'described', 'forward', 'init', 'init_adapters', 'merge', 'nbytes', 'parameters', 'quantise', 'ready', 'repack',
  'train_flops_per_token', 'unembed', 'unmerge', 'value_head', 'values',
]  # fmt: skip
