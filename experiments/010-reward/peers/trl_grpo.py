"""Prints one iteration of TRL's GRPOTrainer, eager torch on CPU in fp32, as one JSON line.

LlamaForCausalLM of random weights (6 layers, 384, 6 heads, 1024, tied head, sdpa), 2 prompts of 16 tokens, 8
completions of each, all of 64 tokens, generated and learnt from in one batch of 16: on-policy, one update, loss_type
grpo, beta 0 (no reference model), AdamW 1e-6, clip 1.0, no gradient checkpointing (TRL's default is to checkpoint), no
dropout, no truncation of the distribution. The reward is the share of even ids.

Completions are full because the end token has an id that the model does not have (V, of 0 to V - 1); min_new_tokens
would do the same at the cost of one more logits processor per token. Text goes through the trainer's own preparation:
one character per token. The cache is transformers' default, which grows; --cache static is one of fixed size.

A step is on_step_begin to on_step_end of a TrainerCallback: generation, decoding, reward, advantages, forward,
backward, clip, optimizer, schedule, zero_grad; the data loader and logging are outside. rollout_ms is the time within
model.generate, update_ms the rest: padding, decoding and the reward count there. cpu_share: CPU time of the timed steps
/ (2 x their wall time): well under 1 on a busy machine, whose wall times are then not to be used.
"""

import argparse
import contextlib
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
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402

PROMPTS, SAMPLES, PROMPT, NEW = 2, 8, 16, 64
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 6, 384, 6, 1024


def character(token):
  """Returns the character that stands for a token (the CJK block: no case, no composition)."""
  return chr(0x4E00 + int(token))


def make_tokenizer(vocabulary):
  """Returns a tokenizer of one character per token; id V is the end and the pad, which the model cannot say."""
  words = {character(token): token for token in range(vocabulary + 1)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=character(0)))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  end = character(vocabulary)
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end, padding_side='left')


class Clock(TrainerCallback):
  """The clock of steps, and of the calls of `generate`."""

  def __init__(self):
    self.seconds, self.cpu, self.rollout, self.lengths, self.first_step = [], [], [], set(), None

  def on_step_begin(self, args, state, control, **_):
    self.start, self.start_cpu, self.generated = time.perf_counter(), time.process_time(), 0.0

  def on_step_end(self, args, state, control, **_):
    self.seconds.append(time.perf_counter() - self.start)
    self.cpu.append(time.process_time() - self.start_cpu)
    self.rollout.append(self.generated)
    if self.first_step is None:
      self.first_step = common.process_age()

  def around(self, model):
    generate = model.generate

    def timed(*args, **kwargs):
      start = time.perf_counter()
      out = generate(*args, **kwargs)
      self.generated += time.perf_counter() - start
      return out

    model.generate = timed

  def even(self, completion_ids, **_):
    self.lengths |= set(map(len, completion_ids))
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--vocab', type=int, choices=(65, 4096), required=True)
  parser.add_argument('--steps', type=int, default=5, help='timed steps')
  parser.add_argument('--warm-up', type=int, default=common.WARM_UP)
  parser.add_argument('--optim', default='adamw_torch_fused', help="transformers' default on this torch")
  parser.add_argument('--attention', default='sdpa')
  parser.add_argument('--cache', help='cache_implementation: static, or the default')
  args = parser.parse_args()
  torch.set_num_threads(threads)
  total, clock = args.steps + args.warm_up, Clock()

  with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
    torch.manual_seed(common.SEED)
    config = LlamaConfig(
      vocab_size=args.vocab,
      hidden_size=HIDDEN,
      intermediate_size=INTERMEDIATE,
      num_hidden_layers=LAYERS,
      num_attention_heads=HEADS,
      num_key_value_heads=HEADS,
      max_position_embeddings=PROMPT + NEW,
      tie_word_embeddings=True,
      attention_dropout=0.0,
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=None,
      use_cache=True,
      attn_implementation=args.attention,
    )
    model = LlamaForCausalLM(config).float()
    drawn = torch.randint(args.vocab, (total * PROMPTS, PROMPT)).tolist()
    trainer = trl.GRPOTrainer(
      model=model,
      reward_funcs=clock.even,
      args=trl.GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        fp16=False,
        seed=common.SEED,
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        max_completion_length=NEW,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        loss_type='grpo',
        max_steps=total,
        learning_rate=1e-6,
        lr_scheduler_type='constant',
        optim=args.optim,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        disable_dropout=True,
        cache_implementation=args.cache,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        report_to='none',
        save_strategy='no',
        logging_steps=total,
        disable_tqdm=True,
      ),
      train_dataset=datasets.Dataset.from_dict({'prompt': [''.join(map(character, ids)) for ids in drawn]}),
      processing_class=make_tokenizer(args.vocab),
      callbacks=[clock],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    clock.around(trainer.model)
    if torch.get_num_threads() != threads:
      raise RuntimeError(f'torch has {torch.get_num_threads()} threads')
    trainer.train()

  if {parameter.dtype for parameter in trainer.model.parameters()} != {torch.float32}:
    raise RuntimeError('a parameter is not fp32')
  if any(getattr(module, 'gradient_checkpointing', False) for module in trainer.model.modules()):
    raise RuntimeError('activations are recomputed')
  if clock.lengths != {NEW}:
    raise RuntimeError(f'completions have {clock.lengths} tokens')
  timed = slice(args.warm_up, None)
  common.emit(
    'trl GRPO',
    f'trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, '
    f'accelerate {accelerate.__version__}',
    f'V{args.vocab}',
    PROMPTS * SAMPLES * NEW,
    clock.seconds,
    clock.first_step,
    torch.get_num_threads(),
    args.warm_up,
    rollout_ms=round(1e3 * statistics.median(clock.rollout[timed]), 3),
    update_ms=round(1e3 * statistics.median(a - b for a, b in zip(clock.seconds[timed], clock.rollout[timed])), 3),
    cpu_share=round(sum(clock.cpu[timed]) / sum(clock.seconds[timed]) / threads, 3),
    vocabulary=args.vocab,
    optim=args.optim,
    attention=args.attention,
    cache=args.cache or 'dynamic',
    parameters=sum(p.numel() for p in trainer.model.parameters()),
  )


if __name__ == '__main__':
  main()
