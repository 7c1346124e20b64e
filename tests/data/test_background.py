import os
import random
import signal
import threading
from pathlib import Path

import pytest

from perjoule.core.errors import DataError
from perjoule.data import background
from perjoule.data.background import in_background
from perjoule.data.tokenizer import LONGEST_WORD, TextTokenizer, TokenizerConfig, byte_level_bpe
from perjoule.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer

DNA = "".join(random.Random(0).choices("ACGT", k=200_000))


def test_work_in_the_background_gives_its_result_or_its_error_and_shows_that_time_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "SAY_EVERY_S", 0.0)
    waited, enough = [], threading.Event()

    def waiting(seconds: float) -> None:
        waited.append(seconds)
        enough.set()

    assert in_background(lambda: enough.wait(60), waiting)
    assert waited
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0, waiting)


def test_signal_ends_the_wait_while_a_library_works() -> None:
    never = threading.Event()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        in_background(lambda: never.wait(60), lambda seconds: None)
    never.set()


@pytest.mark.parametrize("text", [DNA, " " * 200_000, "-" * 200_000, "漢字" * 30_000])
def test_text_without_blanks_trains_in_bounded_words_and_comes_back_unchanged(text: str) -> None:
    config = TokenizerConfig(vocab_size=400)
    tokenizer = config.build([text])  # uncut, the first takes 40 s
    assert max(len(token) for token in tokenizer.inner.get_vocab()) <= LONGEST_WORD
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode()) / 2


def test_cutting_changes_no_tokenizer_of_text_with_blanks() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [Path(__file__).read_text(encoding="utf-8")]
    ours = byte_level_bpe(texts, 500, ["<s>"])
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(texts, trainer)
    assert ours.to_str() == plain.to_str()


def test_wordpiece_loses_no_word_for_its_length(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(30):
        (tmp_path / "corpus" / f"{number}.txt").write_text(DNA[number * 2000 : number * 2000 + 2000])
    config = TrainTokenizerConfig(kind="wordpiece", vocab_size=300)
    trained = train_tokenizer(tmp_path / "corpus", tmp_path / "t.json", config, lambda line: None)
    tokenizer = TextTokenizer.load(trained.file)
    ids = tokenizer.encode(DNA[:5000])
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids).replace(" ", "").lower() == DNA[:5000].lower()


def test_vocabulary_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    for make in (TokenizerConfig, TrainTokenizerConfig):
        with pytest.raises(ValueError, match=r"at most 4,194,304"):
            make(vocab_size=1_000_000_000)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfea", "UTF-16"), (b'{"a": "\xe9"}', "byte 7"), (b"[" * 99999, "")]
)
def test_tokenizer_file_that_is_none_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.json.*{message}") as caught:
        TextTokenizer.load(tmp_path / "t.json")
    assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json: it is a named pipe"):
        TextTokenizer.load(tmp_path / "pipe.json")
    (tmp_path / "marked.json").write_bytes(
        TokenizerConfig(vocab_size=260).build(["a"]).inner.to_str().encode("utf-8-sig")
    )
    assert TextTokenizer.load(tmp_path / "marked.json").vocab_size >= 258
