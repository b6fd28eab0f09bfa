"""A LoRA guide that `trimtab export gguf` wrote, loaded by the server that llama.cpp itself has."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_lora
from trimtab.decoding.decoder import Decoder
from trimtab.guides.arm import AdapterARM
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.storage.gguf_files import export_adapter

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp, whose Python side is llama.cpp's server"
)

SERVER = """
import json, sys, xllamacpp
file, adapter, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.port, params.warmup = file, 512, 0, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
if adapter:
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
server = xllamacpp.Server(params)
asked = {"n_predict": 1, "temperature": 0, "ignore_eos": True, "logprobs": 1, "cache_prompt": False}
answers = [server.handle_completions({**asked, "prompt": prompt}) for prompt in prompts]
said = [answer["choices"][0]["logprobs"] or {"content": []} for answer in answers]
print("answers:" + json.dumps([[token["id"] for token in one["content"]] for one in said]), flush=True)
"""


def _served(file: Path, adapter: Path | None, prompts: list[list[int]]) -> list[list[int]]:
    """The next token of each prompt, by llama.cpp's server in another process; none where it is half a character."""
    arguments = [str(file), "" if adapter is None else str(adapter), json.dumps(prompts)]
    done = subprocess.run(
        [sys.executable, "-c", SERVER, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("answers:")]
    assert lines, done.stderr[-2000:]
    found: list[list[int]] = json.loads(lines[0].removeprefix("answers:"))
    return found


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_server_answers_as_the_guides_own_model(weight: float, file: Path, module: Any, tmp_path: Path) -> None:
    guide, out = write_lora(tmp_path / "lora", module), tmp_path / "guide.gguf"
    export_adapter(guide, out, base=file)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 97, (5,), generator=generator).tolist() for _ in range(60)]
    answers = Decoder(HFModel(module), {"g": AdapterARM(LoRA.load(guide), form="shift")}).generate(
        prompts, weights={"g": weight}, temperature=0, max_new_tokens=1, ignore_eos=True
    )
    expected = [list(answer.token_ids) for answer in answers]
    found = _served(file, out if weight else None, prompts)
    shown = [index for index, tokens in enumerate(expected) if 3 <= tokens[0] < 97]  # a whole character, in ASCII
    assert len(shown) >= 15
    assert [found[index] for index in shown] == [expected[index] for index in shown]
