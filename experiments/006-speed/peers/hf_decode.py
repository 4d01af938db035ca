"""Prints greedy `generate` of a random LlamaForCausalLM in fp32 as one JSON line.

transformers' defaults: sdpa attention, dynamic cache. One `generate` of 64 + 128 tokens is one step; end of sequence is
off, so that all 128 are made. `--cache static` and `--attention eager` are the variants. tokens_per_s counts
batch x 128 over the whole call, prefill included; decode_tokens_per_s has batch x 127 over the time after the first
token. Token times are stamped by a logits processor that changes nothing.
"""

import argparse
import time

import common

threads = common.limit_threads()

import llama  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402


class Stamp(transformers.LogitsProcessor):
  def __init__(self):
    self.times = []

  def __call__(self, input_ids, scores):
    self.times.append(time.perf_counter())
    return scores


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='decode', choices=['decode'])
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--steps', type=int, default=3, help='timed generate calls')
  parser.add_argument('--warm-up', type=int, default=1)
  parser.add_argument('--cache', default='dynamic', choices=['dynamic', 'static'])
  parser.add_argument('--attention', default='sdpa', choices=['sdpa', 'eager'])
  args = parser.parse_args()
  torch.set_num_threads(threads)
  transformers.utils.logging.set_verbosity_error()
  model = llama.build(args.attention)
  prompt = torch.from_numpy(llama.prompts(args.batch))
  options = dict(
    do_sample=False,
    max_new_tokens=common.NEW,
    min_new_tokens=None,
    eos_token_id=None,
    pad_token_id=0,
    attention_mask=torch.ones_like(prompt),
  )
  if args.cache == 'static':
    options['cache_implementation'] = 'static'
  runs = []
  for _ in range(args.steps + args.warm_up):
    stamp = Stamp()
    start = time.perf_counter()
    with torch.inference_mode():
      output = model.generate(prompt, logits_processor=[stamp], **options)
    runs.append((start, stamp.times, time.perf_counter()))
    if len(runs) == 1:
      first_token = common.process_age() - (time.perf_counter() - stamp.times[0])
  assert output.shape == (args.batch, common.PROMPT + common.NEW), output.shape
  llama.emit(
    'transformers generate',
    f'transformers {transformers.__version__}, torch {torch.__version__}',
    args,
    runs,
    first_token,
    torch.get_num_threads(),
    output[:, common.PROMPT :].tolist(),
    cache=args.cache,
    attention=args.attention,
  )


if __name__ == '__main__':
  main()
