"""TRL's side of `ppo_against_trl.py`: `trl.experimental.ppo.PPOTrainer` of TRL 1.12.0, driven one iteration at a time.

Runs in `.venv-trl`. The trainer's own `train()` runs unchanged; a callback stops it between iterations. Not counted,
as on the other side: logging, evaluation and saving. Nothing of the iteration is replaced: functions are only wrapped
to time the phases.

Settings in the peer's favour, each measured (see `ppo_against_trl.py`): no gradient checkpointing (its default is on),
fused AdamW, micro-batch and rollout batch sizes at their fastest, and a pad token outside the vocabulary, so that no
sampled token is taken for padding and every attention mask is full, which lets transformers drop the mask and use the
causal kernel.

`bf16=True` alone has no effect in this trainer, which makes an Accelerator of its own: mixed precision has to come
from the launcher, which is what ACCELERATE_MIXED_PRECISION does here. `--autocast` and `--weights` choose among the
ways to run bf16.
"""

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

from worker import Line


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="what ppo_against_trl.py made: policy, reward, prompts.json"
    )
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--answer", type=int, required=True, help="answer tokens a row")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--micro", type=int, required=True, help="rows of a training micro-batch")
    parser.add_argument("--rollout", type=int, required=True, help="rows of a generation or scoring batch")
    parser.add_argument("--weights", choices=["fp32", "bf16"], required=True, help="dtype of the trained weights")
    parser.add_argument(
        "--frozen", choices=["fp32", "bf16"], required=True, help="dtype of reference and reward weights"
    )
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast around the trained models")
    return parser.parse_args()


def make_trainer(asked: argparse.Namespace) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(asked.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}
    prompts = json.loads((asked.folder / "prompts.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(asked.folder / "policy", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "<outside>"})
    config = PPOConfig(
        output_dir=str(asked.folder / "trl"),
        use_cpu=True,
        seed=0,
        learning_rate=1e-5,
        per_device_train_batch_size=asked.micro,
        gradient_accumulation_steps=len(prompts) // asked.micro,
        num_mini_batches=1,
        num_ppo_epochs=asked.epochs,
        local_rollout_forward_batch_size=asked.rollout,
        total_episodes=len(prompts) * 10_000,
        response_length=asked.answer,
        temperature=1.0,
        stop_token=None,
        missing_eos_penalty=None,
        bf16=asked.autocast,
        gradient_checkpointing=False,
        num_sample_generations=0,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    causal = {"dtype": dtype[asked.weights], "attn_implementation": "sdpa"}
    frozen = {"dtype": dtype[asked.frozen], "attn_implementation": "sdpa"}
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(asked.folder / "policy", **causal),
        ref_model=AutoModelForCausalLM.from_pretrained(asked.folder / "policy", **frozen),
        reward_model=AutoModelForSequenceClassification.from_pretrained(asked.folder / "reward", **frozen),
        value_model=AutoModelForSequenceClassification.from_pretrained(asked.folder / "reward", **causal),
        # accelerate takes the last batch of a dataset for the end of gradient accumulation, so the dataset is long
        train_dataset=Dataset.from_dict({"input_ids": prompts * 100}),
    )


def watch(trainer: Any, line: Line) -> dict[str, int]:
    """Time the trainer's phases and count its work; returns the counters."""
    from trl.experimental.ppo import ppo_trainer as module

    count = {"updates": 0, "answer_tokens": 0}
    generate, step = module.batch_generation, trainer.optimizer.step

    def generation(*args: Any, **kwargs: Any) -> Any:
        with line.phase("generation"):
            sequences, logits = generate(*args, **kwargs)
        count["answer_tokens"] += logits.shape[0] * logits.shape[1]
        return sequences, logits

    def optimizer_step(*args: Any, **kwargs: Any) -> Any:
        count["updates"] += trainer.accelerator.sync_gradients
        with line.phase("optimizer"):
            return step(*args, **kwargs)

    forward = module.forward

    def either_forward(model: Any, *args: Any, **kwargs: Any) -> Any:
        with line.phase("train_forward" if model is trainer.model else "scoring"):
            return forward(model, *args, **kwargs)

    module.batch_generation = generation
    module.forward = either_forward
    module.get_reward = line.timed("scoring", module.get_reward)
    trainer.optimizer.step = optimizer_step
    trainer.accelerator.backward = line.timed("train_backward", trainer.accelerator.backward)
    return count


def main() -> None:
    asked = options()
    line = Line()
    if asked.autocast:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    warnings.filterwarnings("ignore")
    import accelerate
    import torch
    import transformers
    import trl
    from transformers import PrinterCallback, TrainerCallback

    trainer = make_trainer(asked)
    count = watch(trainer, line)

    class Halt(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            parameters = sum(p.numel() for p in trainer.policy_model.parameters())
            versions = {m.__name__: m.__version__ for m in (torch, transformers, accelerate, trl)}
            precision = (
                f"weights {asked.weights}, frozen {asked.frozen}, autocast {trainer.accelerator.mixed_precision}"
            )
            line.ready(versions=versions, precision=precision, parameters=parameters, threads=torch.get_num_threads())
            line.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            line.report(**count)
            count.update(updates=0, answer_tokens=0)
            line.wait()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Halt())
    trainer.log = lambda *_: None
    trainer.train()


if __name__ == "__main__":
    main()
