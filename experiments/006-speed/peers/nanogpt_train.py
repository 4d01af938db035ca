"""Prints nanoGPT's train step as one JSON line: eager torch in fp32 on a CPU, compiled in bf16 with --device cuda.

Its own model.py (dropout 0, bias False, tied head, sdpa, GELU of 4 d) and configure_optimizers (AdamW, betas 0.9/0.95,
weight decay 0.1; on CPU it asks for the unfused one: torch then takes its for-each loop or plain one by itself). The
step is that of its train.py: forward with loss, backward, clip 1.0, optimizer.step, zero_grad(set_to_none=True).
No accumulation, no learning-rate schedule. Batches are random tokens, drawn before the clock starts. On a GPU it does
what its train.py does by default: torch.compile, autocast to bfloat16, TF32, the fused AdamW.
"""

import argparse
import contextlib
import os
import sys
import time

import common

threads = common.limit_threads()

import torch  # noqa: E402

PEERS = os.environ['PEERS']  # checkouts of nanoGPT and nanodo; the GGUF file
sys.path.insert(0, os.path.join(PEERS, 'nanoGPT'))
from model import GPT, GPTConfig  # noqa: E402


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', choices=common.TRAIN_SIZES, required=True)
  parser.add_argument('--steps', type=int, default=10, help='timed steps')
  parser.add_argument('--warm-up', type=int, default=common.WARM_UP)
  parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
  args = parser.parse_args()
  layers, d, heads, length, batch, vocabulary = common.TRAIN_SIZES[args.size]
  torch.set_num_threads(threads)
  torch.manual_seed(common.SEED)
  with contextlib.redirect_stdout(sys.stderr):  # its model and optimizer print
    model = GPT(GPTConfig(length, vocabulary, layers, heads, d, dropout=0.0, bias=False))
    model.to(args.device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), args.device)
  model.train()
  step, cast = model, contextlib.nullcontext()
  if args.device == 'cuda':
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    step, cast = torch.compile(model), torch.amp.autocast('cuda', dtype=torch.bfloat16)
  total = args.steps + args.warm_up
  data = torch.randint(vocabulary, (total, batch, length + 1))
  seconds = []
  for tokens in data:
    x, y = (t.contiguous().to(args.device) for t in (tokens[:, :-1], tokens[:, 1:]))
    start = time.perf_counter()
    with cast:
      _, loss = step(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    value = loss.item()
    seconds.append(time.perf_counter() - start)
    if len(seconds) == 1:
      first_step, first_loss = common.process_age(), value
  common.emit(
    'nanoGPT',
    f'3adf61e, torch {torch.__version__}',
    args.size,
    batch * length,
    seconds,
    first_step,
    torch.get_num_threads(),
    args.warm_up,
    parameters=sum(p.numel() for p in model.parameters()),
    loss_first=round(first_loss, 4),
    loss_last=round(value, 4),
  )


if __name__ == '__main__':
  main()
