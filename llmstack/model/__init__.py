"""The decoder: the only room that imports flax."""

from llmstack.model.cache import allocate
from llmstack.model.config import ModelConfig, describe, parameters, train_flops_per_token
from llmstack.model.transformer import forward, init, unembed

__all__ = ['ModelConfig', 'allocate', 'describe', 'forward', 'init', 'parameters', 'train_flops_per_token', 'unembed']
