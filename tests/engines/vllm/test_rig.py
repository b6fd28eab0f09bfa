"""The rig gives what it says: vLLM's runner of that version, and the tokens of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engines.vllm.rig import run_program, runner_environment
from tests.tiny import tiny_module, tiny_tokenizer

pytest.importorskip("vllm")

PROMPTS = [[5, 9, 13], [7], [3, 3, 8, 21, 40, 11, 2], [60, 59, 58, 57]]
NUM_TOKENS = 12

PROGRAM = """
import json, sys
from pathlib import Path
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    given, answer = map(Path, sys.argv[1:])
    directory, prompts, num_tokens = json.loads(given.read_text())
    llm = LLM(directory, dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=4)
    version = "v2" if llm.llm_engine.vllm_config.use_v2_model_runner else "v1"
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    answer.write_text(json.dumps([version, [list(output.outputs[0].token_ids) for output in outputs]]))
"""


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_runner_gives_the_tokens_of_transformers(version: str, tmp_path: Path) -> None:
    module = tiny_module("llama", head_dim=32)  # vLLM's attention on a processor has no smaller heads
    module.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    environment = runner_environment(version, tmp_path / "rig")
    answer = run_program(PROGRAM, [str(tmp_path / "model"), PROMPTS, NUM_TOKENS], environment, tmp_path)
    assert answer == [version, [greedy(module, prompt) for prompt in PROMPTS]]


def test_a_program_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        run_program("raise SystemExit('no such luck')", None, runner_environment("v1", tmp_path), tmp_path)


def greedy(module: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            ids = torch.cat([ids, module(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'v3' is no model runner of vLLM"):
        runner_environment("v3", tmp_path)
