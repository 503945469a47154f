"""The command line: finds the verb and imports only what it needs."""

from __future__ import annotations

import sys
from importlib import import_module

USAGE = """usage: fulgurite VERB [options]

  fit        train:    fulgurite fit --config configs/quickstart/grpo.yaml
  validate   measure:  fulgurite validate --config configs/quickstart/grpo.yaml --ckpt_path last
  test       the same on the test loaders
  predict    write completions of the benchmarks with their verdicts
  grade      grade answers of a file: fulgurite grade pairs FILE.jsonl
             judge saved completions again: fulgurite grade generations runs/gsm8k/predictions.jsonl
  compare    train methods side by side: fulgurite compare --config configs/compare/cold_start.yaml
  export     a Hugging Face folder from a checkpoint: fulgurite export runs/quickstart/grpo out
  browse     a page of a run's rounds, completion by completion: fulgurite browse runs/quickstart/grpo
  explain    what a config asks for: fulgurite explain --config configs/quickstart/grpo.yaml
  doctor     check this machine: packages, GPU, vLLM, disk, memory

`fulgurite VERB --help` lists the options; every option is also a key of a config file.
"""
VERBS = {verb: ".trainer_cli" for verb in ("fit", "validate", "test", "predict")}
VERBS |= {verb: f".commands.{verb}" for verb in ("grade", "doctor", "compare", "export", "browse", "explain")}


def main(argv: list[str] | None = None) -> None:
    """Runs a verb.

    Exit codes: 2 the command or config cannot work, 3 a guard stopped the run, 4 an engine failed, 5 memory or disk are full or
    a process of the run ended, 130 or 143 the run was told to end by Ctrl-C or SIGTERM and has saved.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif argv[0] in ("-V", "--version"):
        from . import __version__

        print(__version__)
    elif argv[0] in VERBS:
        import_module(VERBS[argv[0]], __package__).run(argv)
    else:
        print(f"error: no verb {argv[0]!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        raise SystemExit(2)
