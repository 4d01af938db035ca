"""The decoder: the only room that imports flax."""

from llmstack.model.cache import allocate
from llmstack.model.config import ModelConfig, parameters, train_flops_per_token
from llmstack.model.transformer import forward, init, unembed

__all__ = ['ModelConfig', 'allocate', 'forward', 'init', 'parameters', 'train_flops_per_token', 'unembed']
