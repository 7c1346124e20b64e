"""Inputs that users get wrong, by kind: values, recipes, corpora, run folders, places and surroundings.

Every case is a command that must end within ten seconds without a traceback. ``refused`` cases must also end with one
line that begins with ``perjoule:`` and with a documented exit code; the others may be accepted where that is sensible.
``@CORPUS``, ``@RUN`` and ``@HERE`` in arguments stand for a corpus, a trained run's folder (a fresh copy) and the case's folder.
"""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from perjoule.runs.folder import read_manifest

TRAIN = (
    "train model.dim=32 model.num_layers=2 data.kind=text data.seq_len=16 data.tokenizer.vocab_size=320 batch.size=4 stop.steps=2 "
    "evaluate.batches=1 backend=plain backend.threads=1 energy.sampler=off runs=@HERE/runs name=a"
).split()
"""A whole recipe but for its data."""


@dataclass(frozen=True)
class Case:
    """One command, what is laid out for it, and whether it must be refused."""

    name: str
    arguments: list[str]
    refused: bool = True
    prepare: Callable[[Path], object] | None = None
    """Lays files into the case's folder."""
    environment: dict[str, str | None] = field(default_factory=dict)


def cases() -> dict[str, list[Case]]:
    """All cases by kind."""
    kinds = {
        "values": _values,
        "settings": _settings,
        "recipes": _recipes,
        "corpora": _corpora,
        "runs": _runs,
        "places": _places,
        "words": _words,
        "surroundings": _surroundings,
    }
    return {kind: list(make()) for kind, make in kinds.items()}


WRONG = [
    "wide",
    "-1",
    "nan",
    "-inf",
    "1e999",
    "[]",
    "{}",
    "{a: {b: [1, 2]}}",
    "1" * 40,
    "\x1b[31mred\x1b[0m",
    "null",
    "",
    "1.5",
]
"""Values that fit hardly any key; some fit, so that the command may be accepted."""


def _values() -> Iterator[Case]:
    """Every key of a recipe with values that do not fit it, checked without training."""
    from perjoule import load

    for number, key in enumerate(load(None, "data.kind=stdlib").as_json()):
        value = WRONG[number % len(WRONG)]
        yield Case(f"{key}={value[:12]!r}", ["train", "--dry-run", f"{key}={value}"], refused=False)
    for override in (
        "model.dim=1e9", "data.tokenizer.vocab_size=1000000000", "batch.size=1000000000", "data.seq_len=1000000000", "model.num_layers=100000000",
        "stop.seconds=1h", "stop.energy=much", "stop.energy=-5J", "stop.energy=0", "stop.carbon=1 elephant", "stop.steps=-1", "stop.steps=1.5",
        "stop.tokens=1e400", "optimizer.lr=-1", "optimizer.lr=fast", "schedule.kind=cosinus", "model.kind=../../etc/passwd", "model.kind=[1]",
        "data.kind=txt", "data.fractions={train: 0}", "data.fractions={train: 2, validation: -1}", "data.fractions=1", "batch=8x8", "backend=warp",
        "energy.meters=[nvidia, nvidia]", "energy.meters=volts", "energy.meters=[{kind: replay, path: none}]", "carbon.location=Atlantis",
        "carbon.location=UK ", "carbon.pue=0.5", "carbon.price_per_kwh=-1", "checkpoint.keep=-1", "evaluate.split=tset", "device=cuda:99", "device=",
        "device=tpu", "name=../escape", "name=/etc/x", "name=a/b", "name=.", "name=..", "name=" + "n" * 300, "name=\x1b[2J", "name=a\nb", "name=007", "runs=",
        "initial_weights=none.safetensors", "initial_weights=/dev/zero", "stats=nosuchstats", "stats=os:system", "seed=-1", "seed=1e30",
        "model.num_heads=0", "model.num_heads=7", "model.ffn_dim=0", "model.norm_eps=0", "batch.accumulation=3", "batch.workers=-1",
        "a.b.c.d=1", "=", "=1", "model.=1", ".=1", "model..dim=1", "model", "model.dim", "model=[", "model={", "model='", 'model="', "model=!!python/object:os.system", "model=&a [*a]",
        "{}", "--steps=5", "-x", "model.dim=32 model.num_layers=2",
    ):  # fmt: skip
        yield Case(override[:40], [*TRAIN, "data.path=@CORPUS", override], refused=False)


def _settings() -> Iterator[Case]:
    """Settings of the verbs that look at a run or at documents."""
    for words in (
        "evaluate @RUN nonsense", "evaluate @RUN loss.splits=[tset]", "evaluate @RUN loss.batches=-1", "evaluate @RUN loss.batches=0", "evaluate @RUN checkpoint=99",
        "evaluate @RUN checkpoint=first", "evaluate @RUN device=cuda", "evaluate @RUN harness harness.tasks=[nosuch]", "evaluate @RUN harness", "evaluate @RUN thinking",
        "evaluate @RUN latency latency.prompt_tokens=[0]", "evaluate @RUN latency latency.prompt_tokens=[100000000]", "evaluate @RUN latency latency.trials=0",
        "evaluate @RUN loss.splits=[]", "evaluate @RUN los", "evaluate @RUN loss=", "evaluate", "evaluate @HERE", "evaluate @HERE/none", "evaluate /dev/null", "evaluate ''",
        "generate @RUN max_new_tokens=0", "generate @RUN max_new_tokens=-1", "generate @RUN temperature=-1", "generate @RUN --prompt x top_p=2", "generate @RUN --prompt x top_k=-1",
        "generate @RUN", "generate @RUN --prompts none.txt", "generate @RUN --prompts @HERE", "generate @RUN --prompts /dev/null", "generate @RUN --prompt x --output @HERE",
        "generate @RUN --prompt x --output @HERE/a.xyz", "generate @RUN --prompt x --output /proc/a.csv", "generate @RUN --prompt x checkpoint=worst", "generate @RUN --prompt x device=gpu",
        "generate @RUN --prompt x thinking.steps=3", "generate @RUN --prompt x batch_size=0", "generate @RUN --prompt x stop=[]x", "generate @RUN --prompt x seed=-1",
        "export @RUN", "export @RUN /proc/a", "export @RUN @HERE", "export @HERE @HERE/out", "export @RUN @HERE/out checkpoint=best2", "export @RUN @HERE/out x=1",
        "report", "report @HERE", "report @HERE/none", "report @RUN @RUN", "report @RUN @HERE", "report @RUN --output /proc/a.html", "report @RUN --output @HERE", "report /dev/null",
        "report @RUN carbon.location=Atlantis", "report @RUN carbon.price_per_kwh=much", "report @RUN carbon.pue=0", "report @RUN nonsense=1",
        "ls nosuch", "ls runs @HERE/none", "ls runs /dev/null", "ls recipes @HERE", "ls recipes /dev/null", "ls models extra extra", "doctor --quick", "doctor extra",
        "estimate none.yaml", "estimate @HERE", "estimate @RUN --budget many", "estimate --score", "estimate --score none.csv", "estimate --score @CORPUS", "estimate --score /dev/null",
        "estimate --fit a.csv", "estimate --score --fit a.csv --test b.csv", "estimate model.dim=oops", "estimate --device NOSUCHGPU data.kind=stdlib", "estimate --figure a.png",
        "estimate --budget 5 parsecs", "estimate --device-sheet none.yaml", "estimate --device-sheet /dev/null",
        "data", "data download", "data download none @HERE/c", "data download ftp://127.0.0.1/x @HERE/c", "data download http://127.0.0.1:9/x @HERE/c", "data download https://127.0.0.1:9/x @HERE/c",
        "data download file:///etc/passwd @HERE/c", "data download hf: @HERE/c", "data download hf:../../x @HERE/c", "data download stdlib /proc/c", "data download https://127.0.0.1:9/x @HERE/c sha256=zz",
        "data download @CORPUS @CORPUS", "data split @CORPUS @CORPUS", "data split none @HERE/s", "data split @CORPUS /proc/s", "data split @CORPUS @HERE/s fractions.train=2",
        "data split @CORPUS @HERE/s fractions.train=0", "data split @CORPUS @HERE/s engine=spark", 
        "data split @CORPUS @HERE/s engine=dask scheduler=tcp://127.0.0.1:9", "data tokenize @CORPUS @HERE/t", "data tokenize @CORPUS @HERE/t tokenizer=none.json", "data tokenize @CORPUS @HERE/t tokenizer=/dev/null",
        "data tokenize @CORPUS @CORPUS tokenizer=none.json", "data tokenize @CORPUS @HERE/t tokenizer=@CORPUS/00.txt", "data tokenize none @HERE/t tokenizer=none.json",
        "data tokenizer @CORPUS", "data tokenizer @CORPUS @HERE/t.json vocab_size=3", "data tokenizer @CORPUS @HERE/t.json kind=bep", "data tokenizer @CORPUS /proc/t.json", "data tokenizer @CORPUS @HERE",
        "data tokenizer @CORPUS @HERE/t.json vocab_size=1000000000", "data tokenizer none @HERE/t.json", "data tokenizer @CORPUS @HERE/t.json sample_bytes=0", "data tokenizer @CORPUS @HERE/t.json bos=",
        "data inspect", "data inspect none", "data inspect /dev/zero", "data inspect /dev/null", "data inspect @CORPUS tokenizer=none.json", "data inspect @CORPUS nonsense=1", "data inspect @RUN",
        "train none.yaml", "train @HERE", "train @CORPUS", "train --dry-run /dev/null", "train /dev/zero", "train @CORPUS/00.txt", "train --resume", "train --resume @HERE", "train --resume @HERE/none", "train --resume /dev/null",
        "train --resume @RUN model.dim=64", "train a.yaml b.yaml", "train --nosuch", "trian", "", "measure", "measure --", "measure --pid", "measure --pid 999999999", "measure --pid x", "measure --pid 0", "measure --pid -1",
        "measure nosuch=1 -- true", "measure --nosuch -- true",
    ):  # fmt: skip
        accepted = ("@RUN @RUN", "loss.splits=[]", "loss=", "top_k=-1", "thinking.steps=3", "stop=[]x", "max_new_tokens=0",
                    "data inspect @CORPUS", "seed=-1", "@RUN device=cuda", "estimate --device", "ls recipes /dev/null", "train --dry-run /dev/null", "--prompts /dev/null",
                    "ls runs", "data split @CORPUS @HERE/s", "checkpoint=99", "data inspect @RUN", "bos=", "estimate --budget 5", "estimate @RUN", "export @RUN @HERE")  # fmt: skip
        yield Case(words, [word.strip("'") for word in words.split()], refused=not words.endswith(accepted))


def _recipes() -> Iterator[Case]:
    """YAML files that are broken, hostile or of another program."""
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    for name, content in {
        "bomb": bomb, "merge bomb": "b: &b {x: 1}\n" + "".join(f"c{n}: &c{n}\n  <<: [*b, *b]\n" for n in range(200)), "itself": "&a [*a]", "itself in a map": "a: &a {b: *a}", "deep": "[" * 5000 + "]" * 5000, "deep map": "{a: " * 3000 + "}" * 3000,
        "list": "- 1\n- 2\n", "number": "5", "word": "hello", "tab": "model:\n\tdim: 3\n", "twice": "seed: 1\nseed: 2\n", "twice inside": "model: {dim: 3, dim: 4}", "unclosed": "model: {dim: 3", "colon": "a: b: c",
        "tag": "model: !!python/object/apply:os.system [true]", "set": "!!set {a, b}", "binary": "a: !!binary aGVsbG8=", "date": "stop: 2026-01-01", "undefined alias": "model: *m", "two documents": "seed: 1\n---\nseed: 2\n",
        "directive": "%YAML 9.9\n---\nseed: 1\n", "null key": "~: 1", "list key": "[a, b]: 1", "map key": "{a: 1}: 2", "number key": "5: 1", "bool key": "yes: 1", "empty key": '"": 1', "unknown": "modle: {dim: 3}", "nested unknown": "model: {dmi: 3}",
        "null model": "model: null", "list model": "model: [1]", "kind missing": "model: {dim: 3}", "kind number": "model: 5", "long line": "name: " + "x" * 1_000_000, "many keys": "\n".join(f"k{n}: {n}" for n in range(20000)),
        "anchor flood": "\n".join(f"k{n}: &x{n} 1" for n in range(5000)), "huge number": "seed: " + "9" * 5000, "huge float": "optimizer: {lr: 1e99999}", "sexagesimal": "stop: {steps: 1:30}", "octal": "seed: 0o17", "hex": "seed: 0xff", "underscore": "seed: 1_0",
        "nan": "optimizer: {lr: .nan}", "escape": 'name: "\\e[31m"', "nul": 'name: "\\0"', "surrogate": 'name: "\\ud800"', "bell": 'name: "\\a"', "html": "name: <script>alert(1)</script>", "json": '{"model": {"kind": "transformer", "dim": "x"}}',
        "python": "import os\nos.system('x')\n", "toml": "[model]\ndim = 3\n", "html file": "<!doctype html><html></html>", "control": "seed: 1\x01\n", "sections": "model:\n  kind: transformer\ndata:\n  kind: nosuch\n",
    }.items():  # fmt: skip
        yield Case(
            name,
            ["train", "--dry-run", "@HERE/r.yaml"],
            refused=False,
            prepare=_writes("r.yaml", content.encode("utf-8", "surrogatepass")),
        )
    for name, raw in {
        "latin": b"name: caf\xe9\n", "utf16": "seed: x\n".encode("utf-16"), "bom": b"\xef\xbb\xbfseed: x\n", "binary": bytes(range(256)) * 40, "nuls": b"\0" * 5000, "gzip": b"\x1f\x8b\x08" + b"x" * 50, "empty key": b":\n",
        "crlf": b"seed: x\r\nname: y\r\n", "half": b"seed: \xf0\x9f\n",
    }.items():  # fmt: skip
        yield Case(f"raw {name}", ["train", "@HERE/r.yaml"], prepare=_writes("r.yaml", raw))
        yield Case(f"ls beside {name}", ["ls", "recipes", "@HERE"], refused=False, prepare=_writes("r.yaml", raw))
    yield Case("pipe", ["train", "@HERE/r.yaml"], prepare=lambda here: os.mkfifo(here / "r.yaml"))
    yield Case("socket", ["train", "@HERE/r.yaml"], prepare=_socket("r.yaml"))
    yield Case("loop", ["train", "@HERE/r.yaml"], prepare=lambda here: (here / "r.yaml").symlink_to("r.yaml"))
    yield Case("dangling", ["train", "@HERE/r.yaml"], prepare=lambda here: (here / "r.yaml").symlink_to("none"))
    yield Case("sparse", ["train", "@HERE/r.yaml"], prepare=lambda here: _sparse(here / "r.yaml", 20 << 30))
    yield Case(
        "ls beside a pipe", ["ls", "recipes", "@HERE"], refused=False, prepare=lambda here: os.mkfifo(here / "r.yaml")
    )


def _corpora() -> Iterator[Case]:
    """Documents that are broken, for training and for the steps of the pipeline."""
    good = json.dumps({"text": "some words of text " * 200})
    contents: dict[str, bytes] = {
        "empty.txt": b"", "blank.txt": b" \n" * 100, "short.txt": b"hi", "nul.txt": b"\0" * 10000, "latin.txt": b"caf\xe9 " * 900, "utf16.txt": ("words " * 900).encode("utf-16"), "bom.txt": b"\xef\xbb\xbf" + b"words " * 900,
        "cr.txt": b"a word\r" * 900, "long.txt": b"x" * 300_000, "escape.txt": b"\x1b[31m" * 900, "surrogate.jsonl": b'{"text": "\\ud800 ' + b"words " * 300 + b'"}\n', "deep.jsonl": b"[" * 100_000 + b"]" * 100_000 + b"\n",
        "cut.jsonl": b'{"text": "wor', "list.jsonl": b"[1]\n", "number.jsonl": b"5\n", "other.jsonl": b'{"body": "x"}\n', "mixed.jsonl": good.encode() + b"\n5\n", "twice.jsonl": b'{"text": "a", "text": 5}\n', "nan.jsonl": b'{"text": NaN}\n', "bom.jsonl": b"\xef\xbb\xbf" + good.encode() + b"\n",
        "utf16.jsonl": good.encode("utf-16"), "blank.jsonl": b"\n\n\n", "crlf.jsonl": good.encode() + b"\r\n\r\n", "huge.jsonl": b'{"text": ' + b"9" * 10_000 + b"}\n", "nul.jsonl": b'{"text": "\\u0000' + b"words " * 300 + b'"}\n',
        "a.parquet": b"PAR1", "b.parquet": b"not parquet at all" * 100, "c.parquet": b"PAR1" + b"\0" * 100 + b"PAR1", "d.parquet": b"", "e.txt.gz": b"\x1f\x8b\x08\0\0", "f.txt.gz": b"not gzip", "g.jsonl.zst": b"(\xb5/\xfd", "h.txt.xz": b"\xfd7zXZ\0", "i.txt.bz2": b"BZh9",
        "j.csv": b'text\n"unbalanced\n' + b"words\n" * 100, "k.tsv": b"a\tb\n", "l.zip": b"PK\x03\x04", "m.tar": b"\0" * 10240, "n.pdf": b"%PDF-1.4", "o.exe": b"MZ" * 500, "p.json": b"{", "q.json": b"[" + good.encode() + b"]", "r": b"words " * 900, ".hidden.txt": b"words " * 900,
        "model.safetensors": struct.pack("<Q", 1 << 60), "manifest.json": b"{}", "_SUCCESS": b"", "tokens.bin": b"\0\1" * 500,
    }  # fmt: skip
    commands = {
        "train": [*TRAIN, "data.path=@HERE/c"],
        "inspect": ["data", "inspect", "@HERE/c"],
        "split": ["data", "split", "@HERE/c", "@HERE/s"],
        "tokenizer": ["data", "tokenizer", "@HERE/c", "@HERE/t.json", "vocab_size=300"],
    }
    for number, (name, raw) in enumerate(contents.items()):
        for verb in ("train", ("inspect", "split", "tokenizer")[number % 3]):
            yield Case(f"{verb} {name}", commands[verb], refused=False, prepare=_writes(f"c/{name}", raw))
    links: dict[str, Callable[[Path], object]] = {
        "loop": lambda c: (c / "again").symlink_to(c), "file loop": lambda c: (c / "a.txt").symlink_to("a.txt"), "dangling": lambda c: (c / "a.txt").symlink_to("none"), "pipe": lambda c: os.mkfifo(c / "a.txt"),
        "socket": _socket("a.txt"), "zero": lambda c: (c / "a.txt").symlink_to("/dev/zero"), "folder": lambda c: (c / "a.txt").mkdir(), "sparse": lambda c: _sparse(c / "a.jsonl", 1 << 40),
        "not utf8 name": lambda c: Path(os.fsdecode(bytes(c) + b"/\xff.txt")).write_text("words"), "escape name": lambda c: (c / "\x1b[31m.txt").write_text("words"), "newline name": lambda c: (c / "a\nb.txt").write_text("words"),
        "spark": lambda c: _writes("_temporary/0/a.txt", b"words " * 900)(c), "delta": lambda c: _writes("_delta_log/0.json", b"{}")(c), "upper": lambda c: (c / "A.TXT").write_text("words " * 2000),
    }  # fmt: skip
    for name, lay in links.items():
        for verb, command in commands.items():
            yield Case(f"{verb} {name}", command, refused=False, prepare=_below("c", lay))


def _runs() -> Iterator[Case]:
    """Run folders of which one file is missing, cut off, empty or of another kind."""
    verbs = {
        "report": ["report", "@RUN"], "ls": ["ls", "runs", "@RUN/.."], "resume": ["train", "--resume", "@RUN", "stop.steps=4"], "evaluate": ["evaluate", "@RUN", "loss.batches=1"], "generate": ["generate", "@RUN", "--prompt", "x", "max_new_tokens=2"],
        "export": ["export", "@RUN", "@HERE/out"], "estimate": ["estimate", "@RUN"],
    }  # fmt: skip
    files = (
        "manifest.json",
        "config.yaml",
        "resolved.json",
        "metrics.jsonl",
        "tokenizer.json",
        "checkpoints",
        "events",
        "train.log",
        "checkpoints/*/*",
        "events/*",
        "samples/*",
    )
    harms: dict[str, Callable[[Path], object]] = {
        "gone": lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink(), "empty": lambda path: path.write_bytes(b""), "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
        "garbled": lambda path: path.write_bytes(b"\xff\x00garbage{[" * 50), "pipe": _replaced(os.mkfifo), "folder": _replaced(lambda path: path.mkdir()),
    }  # fmt: skip
    names = list(verbs)
    for number, pattern in enumerate(files):
        for offset, (harm, do) in enumerate(harms.items()):
            verb = names[(number + offset * 2) % len(names)]
            yield Case(f"{verb} {pattern} {harm}", verbs[verb], refused=False, prepare=_harmed(pattern, do))
    for key, value in {
        "segments": "x", "segments ": [], "status": 5, "version": 999, "schema": "zzz", "model": None, "data": [1], "name": "\x1b[31m", "config": 3, "reason": "\x1b]0;title\x07 \ud800",
    }.items():  # fmt: skip
        for verb in ("report", "ls", "resume", "evaluate"):
            yield Case(f"{verb} manifest {key}", verbs[verb], refused=False, prepare=_manifest(key.strip(), value))


def _places() -> Iterator[Case]:
    """Folders that cannot be written, are in the way, or belong to somebody else."""
    for runs in ("/proc/runs", "/dev/null", "/dev/null/x", "@CORPUS/00.txt", "@HERE/" + "d" * 300, "/sys/runs"):
        yield Case(f"train runs={runs[:20]}", [*TRAIN, "data.path=@CORPUS", f"runs={runs}"])
    for path in ("/proc/none", "/dev/zero", "/dev/null", "/dev/stdin", "@HERE/none", "", "\x1b[31m", "a" * 5000):
        yield Case(f"train data.path={path[:12]!r}", [*TRAIN, f"data.path={path}"], refused=path != "")
        yield Case(
            f"store {path[:12]!r}",
            [*TRAIN, "data.kind=store", f"data.path={path}", "data.tokenizer=null"],
            refused=True,
        )
        yield Case(f"inspect {path[:12]!r}", ["data", "inspect", path], refused=path != "")
    for where, name in (("@RUN", "manifest.json"), ("@CORPUS", "00.txt")):
        yield Case(f"tokenize into {where}", ["data", "tokenize", "@CORPUS", where, "tokenizer=@RUN/tokenizer.json"])
        yield Case(f"split into {where}", ["data", "split", "@CORPUS", where])
        yield Case(f"export into {where}", ["export", "@RUN", where])
        yield Case(
            f"tokenizer onto a file of {where}",
            ["data", "tokenizer", "@CORPUS", f"{where}/{name}", "vocab_size=300"],
        )
    yield Case(
        "the same name",
        [*TRAIN, "data.path=@CORPUS"],
        prepare=lambda here: (here / "runs" / "a").mkdir(parents=True),
        refused=False,
    )
    yield Case(
        "its own prompts",
        ["generate", "@RUN", "--prompts", "@HERE/p.csv", "--output", "@HERE/p.csv", "max_new_tokens=2"],
        prepare=_writes("p.csv", b"prompt\nx\n"),
    )
    yield Case(
        "an output that exists",
        ["generate", "@RUN", "--prompt", "x", "--output", "@HERE/p.xyz"],
        prepare=_writes("p.xyz", b"mine"),
    )


def _words() -> Iterator[Case]:
    """Prompts and prompt files."""
    for name, prompt in {
        "empty": "",
        "nul-like": "\\0",
        "escape": "\x1b[31m",
        "long": "x" * 100_000,
        "surrogate": "\udcff",
        "newline": "\n",
        "emoji": "🙂" * 200,
    }.items():
        yield Case(f"prompt {name}", ["generate", "@RUN", "--prompt", prompt, "max_new_tokens=2"], refused=False)
    for name, raw in {
        "p.txt": b"", "q.txt": b"\xff\xfe", "r.jsonl": b"{", "s.jsonl": b'{"text": "x"}\n', "t.jsonl": b'{"prompt": 5}\n', "u.csv": b"a,b\n1,2\n", "v.csv": b'prompt\n"open\nx\n', "w.csv": b"prompt\n", "x.xyz": b"x", "y.csv": b"\0prompt\n",
        "z.jsonl": b'{"prompt": "\\ud800"}\n', "bom.csv": b"\xef\xbb\xbfprompt\nx\n", "utf16.csv": "prompt\nx\n".encode("utf-16"), "wide.csv": b"prompt\nx,y,z\n",
    }.items():  # fmt: skip
        yield Case(
            f"prompts {name}",
            ["generate", "@RUN", "--prompts", f"@HERE/{name}", "max_new_tokens=2"],
            refused=False,
            prepare=_writes(name, raw),
        )
    yield Case(
        "prompts pipe", ["generate", "@RUN", "--prompts", "@HERE/p.txt"], prepare=lambda here: os.mkfifo(here / "p.txt")
    )
    for name, raw in {
        "a.csv": b"",
        "b.csv": b"x\n1\n",
        "c.csv": b'a,"b\n1,2\n',
        "d.csv": b"\xff\xfe",
        "e.parquet": b"PAR1",
        "f.json": b"[]",
        "g.csv": b"\0" * 99,
        "h.xlsx": b"PK",
    }.items():
        yield Case(f"score {name}", ["estimate", "--score", f"@HERE/{name}"], prepare=_writes(name, raw))


def _surroundings() -> Iterator[Case]:
    """Environments: no home, no temporary folder, other encodings, settings that are none."""
    environments: list[dict[str, str | None]] = [
        {"HOME": None}, {"HOME": "/nonexistent"}, {"HOME": ""}, {"TMPDIR": "/nonexistent"}, {"PERJOULE_CACHE": "/proc/none"}, {"PERJOULE_CACHE": "/dev/null"}, {"PERJOULE_CACHE": ""}, {"COLUMNS": "1"}, {"COLUMNS": "wide"},
        {"TERM": "dumb"}, {"TZ": "Nowhere/Here"}, {"WORLD_SIZE": "x"}, {"RANK": "5"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"CUDA_VISIBLE_DEVICES": "nonsense"}, {"PYTHONHASHSEED": "0"},
    ]  # fmt: skip
    for environment in environments:
        label = " ".join(f"{key}={value}" for key, value in environment.items())
        yield Case(f"train {label}", [*TRAIN, "data.path=@CORPUS"], refused=False, environment=environment)
        yield Case(f"inspect {label}", ["data", "inspect", "@CORPUS"], refused=False, environment=environment)


def _writes(name: str, content: bytes) -> Callable[[Path], object]:
    def prepare(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)

    return prepare


def _below(name: str, lay: Callable[[Path], object]) -> Callable[[Path], object]:
    def prepare(here: Path) -> None:
        (here / name).mkdir()
        lay(here / name)

    return prepare


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _socket(name: str) -> Callable[[Path], object]:
    def prepare(here: Path) -> None:
        before = Path.cwd()
        os.chdir(here)  # a socket's path may have 108 bytes
        try:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(name)
        finally:
            os.chdir(before)

    return prepare


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return harm


def _harmed(pattern: str, harm: Callable[[Path], object]) -> Callable[[Path], object]:
    def prepare(here: Path) -> None:
        for path in sorted((here / "copies" / "run").glob(pattern)):
            if path.is_file() or "*" not in pattern:
                if path.is_dir() and harm.__name__ == "<lambda>":
                    shutil.rmtree(path)
                else:
                    harm(path)

    return prepare


def _manifest(key: str, value: object) -> Callable[[Path], object]:
    def prepare(here: Path) -> None:
        path = here / "copies" / "run"
        manifest = {**read_manifest(path), key: value}
        (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    return prepare
