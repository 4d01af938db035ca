"""What the experiments that tune a model have in common: how the base is run, adapters, rows, optimiser, evaluation."""

from ml_collections import ConfigDict, config_dict

from configs import sizes


def source(files, *, weight=1.0, holdout=0.02, text=False):
  """Returns one component of the mixture."""
  c = ConfigDict()
  c.files = files  # paths, globs, gs://
  c.weight = weight  # share of the targets, relative
  c.holdout = holdout  # share of the prompts that is never trained on
  c.text = text  # documents, all of which is trained on beside conversations, so that little is forgotten
  return c


def prompt(world):
  """Returns data.prompt of the pairs there are: of data.length, what leaves the fewest columns to compute."""
  return 52 if world else 288


def common(c, *, world):
  """Sets the sections that every tuning task has, for the embedded world or for the books model."""
  c.model = ConfigDict()  # what the base model is stands in its checkpoint; this is how it is run
  c.model.length = config_dict.placeholder(int)  # longest sequence, tokens; None keeps the base's
  c.model.dropout = 0.0
  c.model.dtype = 'float32'  # compute: float32 | bfloat16
  c.model.attention = 'blocks'  # blocks | einsum | xla | cudnn (GPU, bfloat16) | splash (TPU)
  c.model.scan = False  # one compiled layer instead of `layers`
  c.model.remat = 'none'  # none | dots | full
  c.mesh = sizes.mesh()

  c.lora = ConfigDict()
  c.lora.rank = config_dict.placeholder(int)  # R; None trains all parameters
  c.lora.alpha = 16.0  # the update is scaled by alpha / rank
  c.lora.rs = False  # by alpha / sqrt(rank)
  c.lora.targets = ('wq', 'wk', 'wv', 'wo', 'w_gate', 'w_up', 'w_down')  # roles
  c.lora.dropout = 0.0  # on the adapters' input
  c.lora.quantise = False  # the targets of the base in NF4 with double quantisation: QLoRA

  c.chat = ConfigDict()
  c.chat.template = 'llmstack'  # llmstack | chatml | llama3 | gemma | path of a tokenizer_config.json or .jinja
  c.chat.train_on = 'assistant'  # assistant | last (its last turn) | all

  c.data = ConfigDict()
  c.data.folder = 'runs/rows'  # packed rows, one folder per content; shared between runs
  c.data.length = 128 if world else 512  # T, tokens per row and of the longest conversation
  c.data.prompt = config_dict.placeholder(int)  # of these, for prompts that pairs share; None = each side has its own
  c.data.batch = 16 if world else 8  # rows per step, all devices together
  c.data.packing = 'best_fit'  # best_fit | padded (one per row)
  c.data.too_long = 'drop'  # drop | truncate | refuse: a conversation longer than data.length; counted
  c.data.on_error = 'raise'  # raise | skip (counted)
  c.data.sources = ConfigDict()

  c.optim = ConfigDict()
  c.optim.name = 'adamw'  # adamw | lion | muon | adafactor
  c.optim.lr = 1e-4  # peak
  c.optim.b1 = 0.9
  c.optim.b2 = 0.95
  c.optim.eps = 1e-8
  c.optim.weight_decay = 0.0  # on matmul weights and embeddings
  c.optim.clip = 1.0  # global gradient norm; inf for none
  c.optim.schedule = 'cosine'  # constant | linear | cosine | wsd
  c.optim.warmup = 20  # steps
  c.optim.decay = 0  # steps at the end, wsd only
  c.optim.end = 0.1  # last learning rate / peak

  c.train = ConfigDict()
  c.train.steps = 100
  c.train.microbatches = 1
  c.train.loss_chunk = config_dict.placeholder(int)  # positions of logits alive at once, divides length; None = all
  c.train.log_every = 20  # steps
  c.train.bad_steps = 3  # non-finite updates in a row that end the run
  c.train.spike_sigma = config_dict.placeholder(float)  # skip a loss or norm so far above the last ones; None = off
  c.train.spike_window = 128  # steps that it is compared with
  c.train.tensorboard = True

  c.eval = ConfigDict()
  c.eval.every = 100 if world else 500  # steps
  c.eval.rows = 128  # at most, per source
  c.eval.prompts = (
    ('What is the capital of France?', 'What is 7 + 5?') if world else ('Who was Napoleon?', 'Write a short poem.')
  )
  c.eval.new_tokens = 32 if world else 96

  c.runtime = ConfigDict()
  c.runtime.hang_s = 900.0  # without a finished step, evaluation batch or save; longer than any compilation
  c.runtime.grace_s = 120.0  # from SIGTERM to the end, at most

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 500  # steps; the last one is always saved
  c.checkpoint.keep = 1  # newest
  c.checkpoint.keep_every = config_dict.placeholder(int)  # steps; multiples of it are kept for good; None = off
  c.checkpoint.best = config_dict.placeholder(str)  # 'eval/nll': the step with the least is kept too; None = off
  c.checkpoint.resume_from = config_dict.placeholder(str)  # workdir to continue, state and data position
