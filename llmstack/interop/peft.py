"""Adapters of PEFT, in and out: adapter_model.safetensors and adapter_config.json of a Llama (or what is named so).

PEFT keeps lora_A [R, inputs] and lora_B [outputs, R] for each matrix of each layer. Heads and rotary pairs lie as in
Hugging Face's Llama, so that nothing is permuted. Checked against peft 0.21.2.
"""

import json
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from llmstack.errors import BadInput
from llmstack.interop import safetensors
from llmstack.model.lora import ROLES, Lora, shapes

MODULES = {
  'wq': 'self_attn.q_proj', 'wk': 'self_attn.k_proj', 'wv': 'self_attn.v_proj', 'wo': 'self_attn.o_proj',
  'w_gate': 'mlp.gate_proj', 'w_up': 'mlp.up_proj', 'w_down': 'mlp.down_proj',
}  # fmt: skip
ROLE_OF = {module: role for role, module in MODULES.items()}
NAME = 'base_model.model.model.layers.{}.{}.lora_{}.weight'
PARTS = re.compile(re.escape(NAME).replace(r'\{\}', '(.+?)', 1).replace(r'\{\}', '(.+)', 1).replace(r'\{\}', '([AB])'))
# Of a config's entries these say nothing about the function: names, and what shows in the arrays anyway.
NEUTRAL = (
  'peft_type', 'task_type', 'peft_version', 'auto_mapping', 'base_model_name_or_path', 'revision', 'inference_mode',
  'target_modules', 'exclude_modules', 'layers_pattern', 'megatron_core', 'qalora_group_size', 'ensure_weight_tying',
  'runtime_config', 'r', 'lora_alpha', 'lora_dropout', 'use_rslora', 'bias', 'init_lora_weights',
)  # fmt: skip
UNCHANGED = (True, False, None, 'gaussian', 'orthogonal')  # initialisations that leave the base as it was


def export(adapters, lora, cfg, folder, base_model_name):
  """Writes the adapters as a folder that PEFT loads. base_model_name: a name or path that is written down, or None.

  Raises: BadInput for a model whose matrices have other names there (GPT-2).
  """
  if not cfg.gated or cfg.positions != 'rope':
    raise BadInput('PEFT names the matrices of a Llama, and this is none: it would have to be gated, with rope')
  out = {}
  for role, module in MODULES.items():
    if role in lora.targets:
      own = adapters['layers']['attn' if 'attn' in module else 'mlp'][role]
      for layer in range(cfg.layers):
        for leaf, letter, of in (('a', 'A', (-1, lora.rank)), ('b', 'B', (lora.rank, -1))):
          out[NAME.format(layer, module, letter)] = np.asarray(own[leaf][layer], np.float32).reshape(of).T
  told = {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base_model_name, 'r': lora.rank,
    'lora_alpha': lora.alpha, 'use_rslora': lora.rs, 'lora_dropout': lora.dropout, 'bias': 'none',
    'target_modules': [MODULES[role].partition('.')[2] for role in lora.targets], 'inference_mode': True,
  }  # fmt: skip
  os.makedirs(folder, exist_ok=True)
  safetensors.write(os.path.join(folder, 'adapter_model.safetensors'), out, {'format': 'pt'})
  with open(os.path.join(folder, 'adapter_config.json'), 'w') as f:
    json.dump(told, f, indent=2)


def load(folder, cfg):
  """Returns (Lora, adapters) of a folder that PEFT saved.

  Raises: BadInput for what we have not (DoRA, bias, modules_to_save, patterns of ranks, other modules or layers) and
    for an adapter of another base.
  """
  where, weights = (os.path.join(folder, name) for name in ('adapter_config.json', 'adapter_model.safetensors'))
  if not os.path.isfile(where) or not os.path.isfile(weights):
    raise BadInput(
      f'{folder} does not hold adapter_config.json and adapter_model.safetensors: save the adapter with '
      'save_pretrained(folder), as safetensors (adapter_model.bin is a pickle, which is never loaded)'
    )
  with open(where) as f:
    try:
      told = json.load(f)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
      raise BadInput(f'{where} is not JSON: {e}') from e
  if not isinstance(told, dict) or not {'peft_type', 'r', 'lora_alpha'} <= set(told):
    raise BadInput(f'{where} has not all of peft_type, r and lora_alpha: it is no configuration of LoRA')
  only = {'peft_type': ('LORA',), 'bias': ('none',), 'init_lora_weights': UNCHANGED}
  for key, value in told.items():
    if (value and key not in NEUTRAL) or value not in only.get(key, (value,)):
      raise BadInput(f'{where} sets {key} = {value!r}, which is not implemented here: merge that adapter with PEFT')
  arrays, found = safetensors.read(weights), set()
  for name, x in arrays.items():
    parts = PARTS.fullmatch(name)
    if not parts or parts[2] not in ROLE_OF:
      raise BadInput(f'{weights} holds {name}, which has no adapter here: only {", ".join(ROLE_OF)} of the layers do')
    if not parts[1].isdigit() or int(parts[1]) >= cfg.layers:
      raise BadInput(f'{weights} adapts layer {parts[1]} and this model has {cfg.layers}: it is for another base')
    if x.dtype.kind != 'f':
      raise BadInput(f'{weights} stores {name} as {x.dtype}: adapters are floats')
    found.add(ROLE_OF[parts[2]])
  lora = Lora(
    told['r'], float(told['lora_alpha']), bool(told.get('use_rslora')), tuple(r for r in ROLES if r in found),
    float(told.get('lora_dropout', 0.0)),
  )  # fmt: skip
  leaf = lambda path, x: stacked(weights, arrays, path[-2].key, path[-1].key, x.shape, lora.rank)  # noqa: E731
  return lora, jax.tree_util.tree_map_with_path(leaf, shapes(cfg, lora))


def stacked(path, arrays, role, leaf, shape, rank):
  """Returns float32[shape], a leaf of all layers, from PEFT's matrices, which lie the other way round."""
  L, *rest = shape
  inner = math.prod(rest) // rank
  want = (rank, inner) if leaf == 'a' else (inner, rank)
  out = []
  for layer in range(L):
    name = NAME.format(layer, MODULES[role], leaf.upper())
    if name not in arrays:
      raise BadInput(f'{path} has no {name}, and others are there: an adapter of some layers only is not supported')
    if arrays[name].shape != want:
      raise BadInput(f'{path}: {name} is {arrays[name].shape} and this base needs {want}: it is for another base')
    out.append(arrays[name].astype(np.float32).T.reshape(rest))
  return jnp.asarray(np.stack(out))
