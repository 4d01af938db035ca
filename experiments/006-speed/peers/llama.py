"""The random Llama and the prompts both decode peers run, the GGUF of its weights, and their JSON line.

`python llama.py PATH` writes the GGUF (F32, about 540 MB) unless it is there already.
"""

import hashlib
import os
import statistics
import sys

import common
import numpy as np


def build(attention='sdpa'):
  """Returns the LlamaForCausalLM in eval mode: fp32, untied head, normal(0.02) weights of a fixed seed."""
  import torch
  import transformers

  shape = common.LLAMA
  config = transformers.LlamaConfig(
    vocab_size=shape['vocabulary'],
    hidden_size=shape['d'],
    intermediate_size=shape['intermediate'],
    num_hidden_layers=shape['layers'],
    num_attention_heads=shape['heads'],
    num_key_value_heads=shape['kv_heads'],
    max_position_embeddings=1024,
    rms_norm_eps=shape['rms_eps'],
    rope_parameters=dict(rope_type='default', rope_theta=shape['rope_theta']),
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
    attn_implementation=attention,
  )
  torch.manual_seed(common.SEED)
  model = transformers.LlamaForCausalLM(config).eval()
  assert model.dtype == torch.float32
  return model


def prompts(batch):
  """Returns random prompts, int64 (batch, PROMPT); row i is the same whatever the batch."""
  rows = [
    np.random.default_rng([common.SEED, row]).integers(1, common.LLAMA['vocabulary'], common.PROMPT)
    for row in range(batch)
  ]
  return np.stack(rows)


def write_gguf(path):
  """Writes the model of `build` as a GGUF of the llama architecture: every tensor F32, no tokenizer."""
  import gguf

  shape = common.LLAMA
  head = shape['d'] // shape['heads']
  state = {name: tensor.numpy() for name, tensor in build().state_dict().items()}

  def interleaved(weight, heads):
    # Hugging Face rotates halves (i, i + head / 2), llama.cpp neighbours (2 i, 2 i + 1): reorder each head's rows.
    return weight.reshape(heads, 2, head // 2, -1).swapaxes(1, 2).reshape(weight.shape)

  writer = gguf.GGUFWriter(path + '.part', 'llama')
  writer.add_context_length(1024)
  writer.add_embedding_length(shape['d'])
  writer.add_block_count(shape['layers'])
  writer.add_feed_forward_length(shape['intermediate'])
  writer.add_head_count(shape['heads'])
  writer.add_head_count_kv(shape['kv_heads'])
  writer.add_rope_dimension_count(head)
  writer.add_rope_freq_base(shape['rope_theta'])
  writer.add_layer_norm_rms_eps(shape['rms_eps'])
  writer.add_vocab_size(shape['vocabulary'])
  writer.add_tokenizer_model('no_vocab')
  writer.add_file_type(gguf.LlamaFileType.ALL_F32)
  names = {
    'input_layernorm': 'attn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'post_attention_layernorm': 'ffn_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
  }
  writer.add_tensor('token_embd.weight', state.pop('model.embed_tokens.weight'))
  writer.add_tensor('output_norm.weight', state.pop('model.norm.weight'))
  writer.add_tensor('output.weight', state.pop('lm_head.weight'))
  for layer in range(shape['layers']):
    for theirs, ours in names.items():
      weight = state.pop(f'model.layers.{layer}.{theirs}.weight')
      if ours in ('attn_q', 'attn_k'):
        weight = interleaved(weight, shape['heads'] if ours == 'attn_q' else shape['kv_heads'])
      writer.add_tensor(f'blk.{layer}.{ours}.weight', np.ascontiguousarray(weight))
  assert not state, f'not written: {sorted(state)}'
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  os.replace(path + '.part', path)


def emit(peer, version, args, runs, first_token_s, threads, generated, **more):
  """Prints the JSON line. `runs`: (start, the NEW tokens' times, end) per call. `generated`: NEW ids per sequence."""
  timed = runs[args.warm_up :]
  after_first = statistics.median(end - times[0] for _, times, end in timed)
  rate = args.batch * (common.NEW - 1) / after_first
  text = ' '.join(str(token) for row in generated for token in row)
  common.emit(
    peer,
    version,
    args.size,
    args.batch * common.NEW,
    [end - start for start, _, end in runs],
    first_token_s,
    threads,
    args.warm_up,
    batch=args.batch,
    prefill_ms=round(1e3 * statistics.median(times[0] - start for start, times, _ in timed), 1),
    decode_tokens_per_s=round(rate, 2),
    ms_per_token=round(1e3 * after_first / (common.NEW - 1), 3),
    tokens_first=generated[0][:8],
    tokens_digest=hashlib.blake2b(text.encode(), digest_size=6).hexdigest(),
    **more,
  )


if __name__ == '__main__':
  common.limit_threads()
  if not os.path.exists(sys.argv[1]):
    write_gguf(sys.argv[1])
  print(sys.argv[1], os.path.getsize(sys.argv[1]) // 2**20, 'MiB')
