"""SentencePiece: train a vocabulary, encode, decode, decode a stream.

Trained here: identity normalisation, no dummy prefix, every space kept, so that text round-trips
exactly and the ids survive export to other formats. Two limits are SentencePiece's own: U+2581
(its mark for a space) decodes as a space, and the char kind has no bytes to fall back on.
"""

import codecs
import functools
import hashlib
import io
import itertools
import os
import re

import numpy as np

from llmstack.data import sources
from llmstack.errors import BadInput

CHAT_TOKENS = ('<|system|>', '<|user|>', '<|assistant|>', '<|tool|>', '<|end|>')
PAD, BOS, EOS, UNK = 0, 1, 2, 3  # ids in every model trained here; CHAT_TOKENS follow
CHUNK = 4096  # characters per training sentence, at most 4 bytes each
SEEN = 1_000_000  # words whose ids are remembered
GROUP = 4_000_000  # characters that are cut into words at once
# 0 a space, 1 an ASCII letter, 2 another ASCII character, 3 a byte of any other
CLASS = np.array([3 if i > 127 else 0 if i == 32 else 1 if chr(i).isalpha() else 2 for i in range(256)], np.uint8)
# Added to a proto, whose later fields win: normalizer_spec {add_dummy_prefix: false, remove_extra_whitespaces: false}.
AS_IS = b'\x1a\x04\x18\x00\x20\x00'
UNTRAINABLE = '\u2585'  # SentencePiece drops a whole sentence that has this character


def train(texts, *, kind, vocab, characters=100_000_000):
  """Returns bytes: a SentencePiece model proto; the same for the same texts.

  texts: iterable of str.
  kind: 'bpe' or 'unigram' (unseen characters become UTF-8 bytes), or 'char' (every character of
    the texts and no other).
  vocab: exact vocabulary size; for 'char' the largest allowed.
  characters: texts beyond this many characters are not read (the trainer keeps them in memory).

  Raises:
    BadInput: the vocabulary does not fit the texts; the sentence names the nearest that does.
  """
  if kind not in ('bpe', 'unigram', 'char'):
    raise BadInput(f'tokenizer kind is {kind!r}: choose bpe, unigram or char')
  import sentencepiece

  sentences = _alphabet(texts, characters) if kind == 'char' else _sentences(texts, characters)
  proto, failed = io.BytesIO(), []

  def guarded():
    # The trainer turns whatever its iterator raises into a RuntimeError with a C++ preamble.
    try:
      yield from sentences
    except BadInput as error:
      failed.append(error)
      raise

  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=guarded(),
      model_writer=proto,
      model_type=kind,
      vocab_size=vocab,
      use_all_vocab=kind == 'char',
      character_coverage=1.0 if kind == 'char' else 0.9995,
      byte_fallback=kind != 'char',
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      max_sentence_length=4 * CHUNK,
      user_defined_symbols=list(CHAT_TOKENS),
      pad_id=PAD,
      bos_id=BOS,
      eos_id=EOS,
      unk_id=UNK,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise failed[0] if failed else _explain(error, kind, vocab) from None
  size = Tokenizer(proto.getvalue()).vocab
  if size > vocab:
    raise BadInput(f'the texts need a char vocabulary of {size}, above vocab={vocab}: raise it')
  return proto.getvalue()


def _explain(error, kind, vocab):
  """Returns the exception to raise for a trainer's RuntimeError."""
  if most := re.search(r'value <= (\d+)', str(error)):
    return BadInput(f'vocab={vocab} is too large for these texts: {kind} gives {most[1]} at most')
  if least := re.search(r'required_chars\. \d+ vs (\d+)', str(error)):
    return BadInput(f'vocab={vocab} is too small for these texts: {kind} needs {least[1]} at least')
  if 'sentences_.empty()' in str(error):
    return BadInput('there is no text to train a tokenizer on: check the source and its split')
  return error


def _read(texts, characters):
  """Yields the first `characters` characters of the texts."""
  for text in texts:
    yield text[:characters]
    characters -= len(text)
    if characters <= 0:
      return


def _sentences(texts, characters):
  """Yields chunks short enough that SentencePiece, which skips long sentences, keeps them all."""
  for text in _read(texts, characters):
    text = text.replace(UNTRAINABLE, '')
    for start in range(0, len(text), CHUNK):
      yield text[start : start + CHUNK]


def _alphabet(texts, characters):
  """Yields sentences that hold each character of the texts, smallest code point first."""
  found = sorted(set(itertools.chain.from_iterable(_read(texts, characters))))
  if lost := sorted({'\0', '\u2581', UNTRAINABLE}.intersection(found)):
    names = ', '.join(f'U+{ord(c):04X}' for c in lost)
    raise BadInput(f'the texts hold {names}, which SentencePiece cannot: remove it or use kind bpe')
  for start in range(0, len(found), CHUNK - 2):
    # Newlines at either end of a sentence are stripped, so the last character stands guard.
    yield found[-1] + ''.join(found[start : start + CHUNK - 2]) + found[-1]


def cut(texts):
  """Returns (int64[N] number of each text's first word, arrow string[M] words), cut where no piece reaches over.

  A word is the spaces before it and then ASCII letters, or other ASCII characters; a character beyond ASCII joins what
  is on both of its sides.
  """
  import pyarrow

  array = pyarrow.array(texts, pyarrow.string())
  _, offsets, data = array.buffers()
  ends = np.frombuffer(offsets, np.int32)[: len(texts) + 1]
  kind = CLASS[np.frombuffer(data, np.uint8)[: ends[-1]] if data is not None else np.zeros(0, np.uint8)]
  before, here = kind[:-1], kind[1:]
  border = np.zeros(len(kind) + 1, bool)
  border[1:-1] = (here == 0) & (before != 0) | (before ^ here == 3) & (before != 0) & (here != 0)
  border[ends[:-1]] = True
  border[-1] = False
  starts = np.flatnonzero(border).astype(np.int32)
  words = pyarrow.StringArray.from_buffers(len(starts), pyarrow.py_buffer(np.append(starts, ends[-1])), data)
  return np.searchsorted(starts, ends[:-1]), words


def fields(message):
  """Yields (number, value) of a serialised protocol buffer: an int for a varint, bytes for the rest."""
  at = 0

  def varint():
    nonlocal at
    value = shift = 0
    while True:
      byte = message[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(message):
    number, kind = divmod(varint(), 8)
    if kind == 0:
      yield number, varint()
      continue
    size = {1: 8, 5: 4}.get(kind) or varint()
    yield number, message[at : at + size]
    at += size


class Tokenizer:
  """A SentencePiece model: text <-> int32 ids. `bos` and `eos` are None where the model has none.

  source: the proto as bytes, or the path of a `.model` file.

  A model that was trained with a dummy prefix (Llama, Mistral) puts one space before the text and
  takes one off the front when decoding: the round trip holds for whole texts, not for pieces.
  `pad` falls back to eos, then 0. Chat tokens that occur in a text encode as their ids.

  Raises:
    BadInput: not a SentencePiece model.
  """

  def __init__(self, source):
    import sentencepiece

    name = 'the tokenizer proto' if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
      try:
        fs, path = sources.filesystem(str(source))
        with fs.open(path, 'rb') as file:
          source = file.read()
      except FileNotFoundError:
        raise BadInput(f'{name} does not exist: give the path of a SentencePiece .model file') from None
    if not source:
      raise BadInput(f'{name} is empty: give a SentencePiece .model file')
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(source)
    except RuntimeError:
      raise BadInput(f'{name} is not a SentencePiece model: give a .model file of sentencepiece') from None
    self.proto = source
    self.fingerprint = hashlib.blake2b(source, digest_size=8).hexdigest()
    self.vocab = self._model.vocab_size()
    bos, eos, pad = self._model.bos_id(), self._model.eos_id(), self._model.pad_id()
    self.bos, self.eos = (i if i >= 0 else None for i in (bos, eos))
    self.pad = next(i for i in (pad, eos, 0) if i >= 0)

  def unfinished(self, ids):
    """Returns bool: the ids end in bytes that begin a UTF-8 character and do not finish it."""
    tail = list(itertools.takewhile(lambda i: i < self.vocab and self._model.is_byte(i), reversed(ids)))[::-1]
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    decoder.decode(bytes(int(self._model.id_to_piece(i)[1:-1], 16) for i in tail))
    return decoder.getstate()[0] != b''

  def encode(self, text):
    """Returns int32[n] ids, without BOS and EOS."""
    return np.array(self._model.encode(text), np.int32)

  def encode_plain(self, text):
    """Returns int32[n] ids of a text that is data: never a chat token, and `decode_plain` gives the text back.

    '<|end|>' becomes the pieces of '<' and '|end|>', and a model's dummy prefix is left out, so that texts may be
    encoded one after the other. What the model's own normalisation changes stays changed.
    """
    plain, cuts = self._plain, [0]
    if self._typed:
      cuts += [match.start() + 1 for match in self._typed.finditer(text)]
    ids = [i for a, b in zip(cuts, [*cuts[1:], len(text)]) for i in plain.encode(text[a:b])]
    if self._typed and not self._typed_ids.isdisjoint(ids):  # a normaliser wrote one, say from wide characters
      ids = [i for c in text for i in plain.encode(c)]
    return np.array(ids, np.int32)

  def decode_plain(self, ids):
    """Returns str as `decode` does, with the space that it takes off the front where there is a dummy prefix."""
    return self._plain.decode([i for i in np.asarray(ids, np.int64).tolist() if i < self.vocab])

  @functools.cached_property
  def _plain(self):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(self.proto + AS_IS)
    return model

  @functools.cached_property
  def symbols(self):
    """Returns {text: id} of the pieces that steer: control symbols and user-defined ones such as chat tokens.

    Single characters and whitespace (Gemma has a symbol for each run of newlines) are text.
    """
    spelled = lambda i: self._model.id_to_piece(i).replace('\u2581', ' ')  # noqa: E731
    found = {spelled(i): i for i in range(self.vocab) if self._model.is_control(i) or i in self._user_defined}
    return {text: i for text, i in found.items() if len(text.strip()) > 1}

  @functools.cached_property
  def _user_defined(self):
    """Returns {id}, read from the proto, as the processor does not tell."""
    pieces = (value for number, value in fields(self.proto) if number == 1)
    return {i for i, piece in enumerate(pieces) if (3, 4) in fields(piece)}

  @functools.cached_property
  def _typed_ids(self):
    return {i for i in self.symbols.values() if i in self._user_defined}

  @functools.cached_property
  def _typed(self):
    """Returns the pattern of where a user-defined symbol begins in a text; None without any."""
    found = [re.escape(text) for text, i in self.symbols.items() if i in self._typed_ids]
    return re.compile(f'(?={"|".join(found)})') if found else None

  def prompt(self, text):
    """Returns a list of ids to generate from: BOS, where the model has one, and the text."""
    return ([] if self.bos is None else [self.bos]) + self._model.encode(text)

  def encode_batch(self, texts):
    """Returns [int32[n]], one per text, equal to `encode` of each.

    No piece of a BPE model that `train` made reaches from an ASCII letter to another ASCII character, from that to a
    letter, or from anything to a space behind it: a text is its words, and each distinct one is encoded once.
    """
    out, group, size = [], [], 0
    symbols, texts = self._symbols, list(texts)
    if symbols is None:
      return [np.array(ids, np.int32) for ids in self._model.encode(texts)]
    for text in texts:
      group.append(text)
      size += len(text)
      if size >= GROUP:
        out += self._encode_words(group)
        group, size = [], 0
    out += self._encode_words(group)
    whole = [i for i, text in enumerate(texts) if symbols.search(text)]
    for i, ids in zip(whole, self._model.encode([texts[i] for i in whole])):
      out[i] = np.array(ids, np.int32)
    return out

  def _encode_words(self, texts):
    first, words = cut(texts)
    words = words.dictionary_encode()
    index, distinct = words.indices.to_numpy(), words.dictionary.to_pylist()
    if len(self._seen) > SEEN:
      self._seen.clear()
    if new := [word for word in distinct if word not in self._seen]:
      self._seen.update(zip(new, (np.array(ids, np.int32).tobytes() for ids in self._model.encode(new))))
    found = [self._seen[word] for word in distinct]
    flat = np.frombuffer(b''.join(found), np.int32)
    sizes = np.fromiter(map(len, found), np.int64, len(found)) // 4
    begins, sizes = (np.cumsum(sizes) - sizes)[index], sizes[index]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    ids = flat[np.repeat(begins - ends[:-1], sizes) + np.arange(ends[-1])]
    return np.split(ids, ends[first[1:]])

  @functools.cached_property
  def _seen(self):
    return {}

  @functools.cached_property
  def _symbols(self):
    """Returns the pattern of pieces that span words, such as chat tokens; None where words cannot be encoded alone."""
    model, ids = self._model, range(self.vocab)
    if any(model.get_score(i) % 1 for i in ids):
      return None  # unigram: the best of several equal paths depends on the whole text
    pieces = [model.id_to_piece(i).replace('\u2581', ' ') for i in ids if not (model.is_control(i) or model.is_byte(i))]
    counts = np.diff(np.append(*(lambda first, words: (first, len(words)))(*cut(pieces))))
    across = [re.escape(piece) for piece, n in zip(pieces, counts) if n > 1]
    alone = lambda text: model.encode(text) == list(itertools.chain(*model.encode(cut([text])[1].to_pylist())))  # noqa: E731
    # A normaliser that changes spaces, or a dummy prefix, shows in one of these.
    if len(across) > 64 or not all(
      map(alone, ('a b', ' a  b', 'a\n b\t c ', 'a \u3000b', '\ufb01 \u2460 x', 'e \u0301a'))
    ):
      return None
    return re.compile('|'.join(['\u2581', *across]))

  def decode(self, ids):
    """Returns str; control tokens (BOS, EOS, padding) give nothing, bad UTF-8 bytes U+FFFD.

    So do ids past `vocab`: a model's vocabulary may be rounded up beyond the tokenizer's.
    """
    return self._model.decode([i for i in np.asarray(ids, np.int64).tolist() if i < self.vocab])

  def pieces(self, texts):
    """Returns (tokens, how many of them are bytes or unknown)."""
    ids = np.concatenate([*self.encode_batch(texts), np.zeros(0, np.int32)])
    return len(ids), int(self._odd[ids].sum())

  @functools.cached_property
  def _odd(self):
    return np.array([self._model.is_byte(i) or self._model.is_unknown(i) for i in range(self.vocab)])

  def stream(self):
    """Returns a Stream, which decodes ids as they come."""
    return Stream(self)


def foreign(path):
  """Returns texts -> (tokens, how many of them are bytes or unknown) of another vocabulary, to compare with.

  path: a SentencePiece .model, or a tokenizer.json of Hugging Face (extra `hf`).
  """
  if not path.endswith('.json'):
    return Tokenizer(path).pieces
  try:
    import tokenizers
  except ImportError:
    raise BadInput(f"{path} needs the package tokenizers: pip install 'llmstack[hf]'") from None
  if not os.path.isfile(path):
    raise BadInput(f'{path} does not exist: correct tokenizer.compare')
  model = tokenizers.Tokenizer.from_file(path)
  odd = {i for piece, i in model.get_vocab().items() if re.fullmatch('<0x[0-9A-F]{2}>|<unk>', piece)}

  def pieces(texts):
    ids = [i for e in model.encode_batch(list(texts), add_special_tokens=False) for i in e.ids]
    return len(ids), sum(i in odd for i in ids)

  return pieces


class Stream:
  """Incremental decode: what `feed` returns, and at last `end`, joins to decode(all ids)."""

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer
    self._head = []  # ids up to the first visible text: how a model treats a leading space
    self._shown = ''  # decode(head)
    self._held = []  # byte pieces of a character that is not whole yet

  def feed(self, ids):
    """Returns str: the new text, up to the last whole UTF-8 character.

    ids: one id or a sequence of ids.
    """
    out = ''
    for i in np.atleast_1d(np.asarray(ids, np.int64)).tolist():
      self._held.append(i)
      if not self._tokenizer.unfinished(self._held):
        out += self.end()
    return out

  def end(self):
    """Returns str: the text of what is held back, an unfinished character as U+FFFD."""
    text = self._tokenizer.decode(self._head + self._held)
    out = text[len(self._shown) :]
    if not self._shown:
      self._head, self._shown = self._head + self._held, text
    self._held = []
    return out
