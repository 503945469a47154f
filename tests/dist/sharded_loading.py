"""`python sharded_loading.py FOLDER`: a saved model is loaded in shards by two processes, and whole by two others; each leaves the
peak of its own memory (MiB) and the first whether the weights are those of the folder."""

import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402

from forking import run_forked  # noqa: E402
from fulgurite.models.causal_lm import CausalLM  # noqa: E402
from fulgurite.models.sources import load_tokenizer  # noqa: E402
from fulgurite.models.tiny import TinyModel  # noqa: E402

DEEP = TinyModel("qwen3", hidden_size=384, intermediate_size=1536, layers=24, heads=6, kv_heads=6, alphabet="0123456789")


def own_memory() -> float:
    """MiB of this process that are no pages of a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class Peak(threading.Thread):
    """The most that `own_memory` grows while it runs."""

    def __enter__(self):
        self.before, self.most, self.over = own_memory(), 0.0, False
        self.start()
        return self

    def run(self):
        while not self.over:
            self.most = max(self.most, own_memory() - self.before)
            time.sleep(0.001)

    def __exit__(self, *_):
        self.over = True
        self.join()


def work(saved: Path, in_shards: bool) -> None:
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    with Peak(daemon=True) as peak:
        if in_shards:
            model = CausalLM.load_sharded(str(saved), mesh)
        else:
            model = CausalLM.load(str(saved))
            model.shard(mesh)
    whole = dict(CausalLM.load(str(saved)).named_full_weights())
    streamed = dict(model.named_full_weights())
    same = whole.keys() == streamed.keys() and all(torch.equal(whole[name], streamed[name]) for name in whole)
    logprobs = model.score(torch.arange(3, 11)[None], torch.arange(8)[None] > 0).logprobs.sum()
    logprobs.backward()
    fingerprints = {model.fingerprint(), CausalLM.load(str(saved)).fingerprint()}
    record = {
        "fingerprints": len(fingerprints),
        "peak": peak.most,
        "same": same,
        "logprobs": logprobs.item(),
        "tied": len(model.tied_weights()),
    }
    Path(f"record.{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(record))


def main(folder: Path) -> None:
    run_forked(lambda: CausalLM.load(DEEP, torch.bfloat16).save(folder / "saved", load_tokenizer(DEEP)), folder / "saving")
    for way in ("shards", "whole"):
        print(way, run_forked(partial(work, folder / "saved", way == "shards"), folder / way, 2), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]).resolve())
