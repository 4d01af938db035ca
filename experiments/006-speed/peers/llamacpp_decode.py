"""Prints greedy decoding by llama.cpp of the same random Llama, GGUF F32, as one JSON line.

llama-cpp-python's low-level API: one context of `batch` sequences (kv_unified off: each sequence attends to its own
cache), K and V cache in f32, 2 threads, the whole prompt in one llama_decode, then one llama_decode of `batch` tokens
per step; numpy's argmax picks the token (cheaper than llama_sampler's greedy). `--flash` is off here because
llama.cpp's flash attention (its own default, auto) casts an f32 cache to f16 in every step: see check_llama.py.
The GGUF is written on the first run (that run's first_step_s is worthless).
"""

import argparse
import importlib.metadata
import os
import time

import common

threads = common.limit_threads()

import llama  # noqa: E402
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402

PEERS = os.environ['PEERS']  # checkouts of nanoGPT and nanodo; the GGUF file
GGML_TYPE_F32 = 0
FLASH = {'auto': -1, 'off': 0, 'on': 1}
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)


def open_context(path, batch, flash):
  """Returns (model, context)."""
  llama_cpp.llama_log_set(quiet, None)
  llama_cpp.llama_backend_init()
  model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
  assert model, f'llama.cpp cannot load {path}'
  params = llama_cpp.llama_context_default_params()
  params.n_ctx = batch * (common.PROMPT + common.NEW)
  params.n_batch = max(512, batch * common.PROMPT)
  params.n_ubatch = 512
  params.n_seq_max = batch
  params.n_threads = params.n_threads_batch = threads
  params.type_k = params.type_v = GGML_TYPE_F32
  params.flash_attn_type = FLASH[flash]
  params.kv_unified = False
  context = llama_cpp.llama_init_from_model(model, params)
  assert context, 'llama.cpp cannot make the context'
  return model, context


def decode(context, batch, tokens, first_position):
  """Runs `tokens` (sequences, length) from `first_position` on. Returns the next token of each sequence, by argmax."""
  sequences, length = tokens.shape
  batch.n_tokens = sequences * length
  last = []
  for row in range(sequences):
    for column in range(length):
      i = row * length + column
      batch.token[i] = tokens[row, column]
      batch.pos[i] = first_position + column
      batch.n_seq_id[i] = 1
      batch.seq_id[i][0] = row
      batch.logits[i] = column == length - 1
    last.append(i)
  code = llama_cpp.llama_decode(context, batch)
  assert code == 0, f'llama_decode: {code}'
  vocabulary = common.LLAMA['vocabulary']
  logits = (np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocabulary,)) for i in last)
  return np.array([row.argmax() for row in logits])


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='decode', choices=['decode'])
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--steps', type=int, default=3, help='timed runs of prompt and 128 tokens')
  parser.add_argument('--warm-up', type=int, default=1)
  parser.add_argument('--flash', default='off', choices=FLASH)
  parser.add_argument('--gguf', default=os.path.join(PEERS, 'llama-f32.gguf'))
  args = parser.parse_args()
  if not os.path.exists(args.gguf):
    llama.write_gguf(args.gguf)
  model, context = open_context(args.gguf, args.batch, args.flash)
  prompt = llama.prompts(args.batch)
  batch = llama_cpp.llama_batch_init(prompt.size, 0, 1)
  runs = []
  for _ in range(args.steps + args.warm_up):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    start = time.perf_counter()
    generated, times = [decode(context, batch, prompt, 0)], [time.perf_counter()]
    if not runs:
      first_token = common.process_age()
    for position in range(common.PROMPT, common.PROMPT + common.NEW - 1):
      generated.append(decode(context, batch, generated[-1][:, None], position))
      times.append(time.perf_counter())
    runs.append((start, times, times[-1]))
  llama.emit(
    'llama.cpp',
    f'llama-cpp-python {importlib.metadata.version("llama-cpp-python")}',
    args,
    runs,
    first_token,
    llama_cpp.llama_n_threads(context),
    np.stack(generated, axis=1).tolist(),
    flash=args.flash,
    system=llama_cpp.llama_print_system_info().decode().strip(),
  )


if __name__ == '__main__':
  main()
