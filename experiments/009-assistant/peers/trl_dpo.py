"""Prints one optimisation step of TRL's DPOTrainer, eager torch on CPU in fp32, as one JSON line.

LlamaForCausalLM of random weights (6 layers, 384, 6 heads, 1024, tied head, sdpa), 8 pairs of 2 x 256 tokens (prompt
64, completion 192, nothing padded), sigmoid loss, beta 0.1, AdamW 1e-6, clip 1.0, no gradient checkpointing, no
dropout. Text goes through the trainer's own preparation: one random character per token, so that its columns are
exactly the ids that were drawn, but for the end token it wants at the end of a completion (checked below).

The reference is a copy of the model (TRL's default is the same copy, loaded from the model's path, which a model made
in memory lacks), its stored log-probabilities (--precomputed; made before the clock starts) or, with --lora R, the
model with the adapter (every linear layer of the blocks, alpha 2 R) off. TRL 1.16 takes no adapter on the head.

A step is on_step_begin to on_step_end of a TrainerCallback: forward of both models, metrics, backward, clip,
optimizer, schedule, zero_grad; collation and logging are outside. loop_ms, the median from one on_step_end to the next,
has them. cpu_share: CPU time of the timed steps / (2 x their wall time): well under 1 on a busy machine, whose wall
times are then not to be used. cpu_ms, the median CPU time of a step over all threads, needs GOMP_SPINCOUNT=0
(threads that wait do not spin); half of it is then the least a step can take on two free cores.
"""

import argparse
import contextlib
import copy
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / '006-speed/peers'))
import common  # noqa: E402

threads = common.limit_threads()
os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_DISABLE_PROGRESS_BARS='1', TQDM_DISABLE='1')

import accelerate  # noqa: E402
import datasets  # noqa: E402
import peft  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402

PROMPT, COMPLETION = 64, 192
LENGTH = PROMPT + COMPLETION
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 6, 384, 6, 1024


def character(token):
  """Returns the character that stands for a token (the CJK block: no case, no composition)."""
  return chr(0x4E00 + int(token))


def make_tokenizer(vocabulary):
  """Returns a tokenizer of one character per token; the last is both the end and (TRL's own default) the pad."""
  words = {character(token): token for token in range(vocabulary)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=character(0)))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  end = character(vocabulary - 1)
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def make_data(vocabulary, pairs):
  """Returns the text columns, and the ids behind them: the last of each completion is the end token."""
  sides = {}
  for name, length in (('prompt', PROMPT), ('chosen', COMPLETION), ('rejected', COMPLETION)):
    ids = torch.randint(vocabulary - 1, (pairs, length))
    if name != 'prompt':
      ids[:, -1] = vocabulary - 1
    sides[name] = ids.tolist()
  text = {name: [''.join(map(character, row)) for row in rows] for name, rows in sides.items()}
  return datasets.Dataset.from_dict(text), sides


class Clock(TrainerCallback):
  def __init__(self):
    self.seconds, self.cpu, self.ends, self.first_step, self.losses = [], [], [], None, []

  def on_step_begin(self, args, state, control, **_):
    self.start, self.start_cpu = time.perf_counter(), time.process_time()

  def on_step_end(self, args, state, control, **_):
    now = time.perf_counter()
    self.seconds.append(now - self.start)
    self.cpu.append(time.process_time() - self.start_cpu)
    self.ends.append(now)
    if self.first_step is None:
      self.first_step = common.process_age()

  def on_log(self, args, state, control, logs=None, **_):
    if 'loss' in logs:
      self.losses.append(logs['loss'])


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--vocab', type=int, choices=(65, 4096), required=True)
  parser.add_argument('--steps', type=int, default=10, help='timed steps')
  parser.add_argument('--warm-up', type=int, default=common.WARM_UP)
  parser.add_argument('--batch', type=int, default=8, help='pairs')
  parser.add_argument('--precomputed', action='store_true', help='precompute_ref_log_probs')
  parser.add_argument('--lora', type=int, default=0, metavar='R')
  parser.add_argument('--optim', default='adamw_torch_fused', help="transformers' default on this torch")
  parser.add_argument('--attention', default='sdpa')
  parser.add_argument('--compact', action='store_true', help='NOT TRL on CPU: score the completions only, as on CUDA')
  parser.add_argument(
    '--head-chunk', type=int, default=32768, help='NOT TRL, a constant there: row stride of the head tile'
  )
  parser.add_argument('--compile', action='store_true', help='torch_compile (inductor)')
  args = parser.parse_args()
  torch.set_num_threads(threads)
  total = args.steps + args.warm_up

  with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
    torch.manual_seed(common.SEED)
    config = LlamaConfig(
      vocab_size=args.vocab,
      hidden_size=HIDDEN,
      intermediate_size=INTERMEDIATE,
      num_hidden_layers=LAYERS,
      num_attention_heads=HEADS,
      num_key_value_heads=HEADS,
      max_position_embeddings=LENGTH,
      tie_word_embeddings=True,
      attention_dropout=0.0,
      bos_token_id=None,
      eos_token_id=args.vocab - 1,
      attn_implementation=args.attention,
    )
    model = LlamaForCausalLM(config).float()
    data, ids = make_data(args.vocab, total * args.batch)
    reference = None
    if not args.precomputed and not args.lora:
      reference = copy.deepcopy(model).eval().requires_grad_(False)
    adapter = None
    if args.lora:
      names = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
      adapter = peft.LoraConfig(
        r=args.lora, lora_alpha=2 * args.lora, lora_dropout=0.0, target_modules=names, task_type='CAUSAL_LM'
      )
    if args.compact:
      trl.trainer.utils._use_triton = lambda device: True
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = args.head_chunk
    clock = Clock()
    trainer = trl.DPOTrainer(
      model=model,
      ref_model=reference,
      args=trl.DPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        fp16=False,
        seed=common.SEED,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=1,
        max_steps=total,
        learning_rate=1e-6,
        lr_scheduler_type='constant',
        optim=args.optim,
        max_grad_norm=1.0,
        beta=0.1,
        loss_type=['sigmoid'],
        max_length=LENGTH,
        padding_free=False,
        precompute_ref_log_probs=args.precomputed,
        gradient_checkpointing=False,
        disable_dropout=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        torch_compile=args.compile,
        report_to='none',
        save_strategy='no',
        logging_steps=1,
        disable_tqdm=True,
      ),
      train_dataset=data,
      processing_class=make_tokenizer(args.vocab),
      callbacks=[clock],
      peft_config=adapter,
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)  # it prints each step's metrics
    for name, rows in ids.items():
      if [list(row) for row in trainer.train_dataset[f'{name}_ids']] != rows:
        raise RuntimeError(f'the trainer prepared other {name} ids than were drawn')
    if torch.get_num_threads() != threads:
      raise RuntimeError(f'torch has {torch.get_num_threads()} threads')
    trainer.train()

  if {parameter.dtype for parameter in trainer.model.parameters()} != {torch.float32}:
    raise RuntimeError('a parameter is not fp32')
  if abs(clock.losses[0] - 0.693147) > 1e-5:
    raise RuntimeError(f'first loss {clock.losses[0]}, not ln 2')
  loop = [after - before for before, after in zip(clock.ends, clock.ends[1:])]
  common.emit(
    'trl DPO',
    f'trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, '
    f'accelerate {accelerate.__version__}, peft {peft.__version__}',
    f'V{args.vocab}',
    2 * args.batch * LENGTH,
    clock.seconds,
    clock.first_step,
    torch.get_num_threads(),
    args.warm_up,
    step_ms_min=round(1e3 * min(clock.seconds[args.warm_up :]), 3),
    cpu_share=round(sum(clock.cpu[args.warm_up :]) / sum(clock.seconds[args.warm_up :]) / threads, 3),
    cpu_ms=round(1e3 * statistics.median(clock.cpu[args.warm_up :]), 3),
    loop_ms=round(1e3 * statistics.median(loop[max(args.warm_up - 1, 0) :]), 3),
    reference='adapter off' if args.lora and not args.precomputed else 'precomputed' if args.precomputed else 'frozen',
    vocabulary=args.vocab,
    pairs=args.batch,
    lora=args.lora,
    optim=args.optim,
    attention=args.attention,
    compact=args.compact,
    head_chunk=args.head_chunk,
    gomp_spincount=os.environ.get('GOMP_SPINCOUNT'),
    mmap_threshold=os.environ.get('MALLOC_MMAP_THRESHOLD_'),
    compile=args.compile,
    parameters=sum(p.numel() for p in trainer.model.parameters()),
    trainable=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    loss_first=round(clock.losses[0], 6),
    loss_last=round(clock.losses[-1], 6),
  )


if __name__ == '__main__':
  main()
