"""Both sides of `reward_against_trl.py`: one step of `training.reward_model` at a time, or with `--trl`, in TRL's
environment, one of its `RewardTrainer`.

TRL's `train()` runs unchanged; a callback stops it between steps. In its favour: no gradient checkpointing, and AdamW
fused.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from worker import Line


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="has `policy` and `pairs.json`")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True, help="pairs of a step")
    parser.add_argument("--trl", action="store_true", help="be TRL's side")
    parser.add_argument("--weights", choices=["fp32", "bf16"], default="fp32", help="dtype of TRL's weights")
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast around TRL's model")
    parser.add_argument("--micro", type=int, default=8, help="pairs of TRL's micro-batch")
    return parser.parse_args()


def run_preferent(line: Line, asked: argparse.Namespace, pairs: list[list[list[int]]]) -> None:
    import numpy as np
    import torch
    import transformers

    from preferent.config import defaults, recipe
    from preferent.models import language_models
    from preferent.models.world import World
    from preferent.training import reward_model
    from preferent.training.optimizer import TrainingState
    from preferent.training.preference_pairs import PreferencePairs

    values = {
        "large_model_reference": str(asked.folder / "policy"),
        "precision": "bf16",
        "threads": asked.threads,
        "prompt_sequence_length": 64,
        "target_sequence_length": 128,
        "reward": {"batch_size": asked.pairs, "lora_dim": 0, "learning_rate": 1e-5},
    }
    wanted, _ = defaults.filled(defaults.resolve(recipe.parse(values)[0])[0], defaults.AT_ONCE)
    scorer = language_models.load_scorer(asked.folder / "policy", World.of(wanted), lora_dim=0, seed=0)
    chosen, rejected = ([np.array(pair[side], np.int32) for pair in pairs] for side in (0, 1))
    none = np.zeros(len(pairs))
    encoded = PreferencePairs(chosen, rejected, none, none, none, none, none + 1, np.ones((2, len(pairs)), bool), 0, 0)
    state = TrainingState(0, reward_model.optimizer(wanted, scorer))
    parameters = sum(p.numel() for p in scorer.body.parameters())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    line.ready(versions=versions, precision="bf16 compute, fp32 master weights", parameters=parameters)
    while True:
        line.wait()
        rows = (state.step * asked.pairs + np.arange(asked.pairs)) % len(pairs)
        reward_model.learn(wanted, state, scorer, encoded, rows)
        state.step += 1
        line.report(updates=1, pairs=len(rows))


def run_trl(line: Line, asked: argparse.Namespace, pairs: list[list[list[int]]]) -> None:
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        PrinterCallback,
        TrainerCallback,
    )

    torch.set_num_threads(asked.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[asked.weights]
    model = AutoModelForSequenceClassification.from_pretrained(
        asked.folder / "policy", dtype=dtype, attn_implementation="sdpa", num_labels=1
    )
    config = trl.RewardConfig(
        output_dir=str(asked.folder / "trl"),
        use_cpu=True,
        bf16=asked.autocast,
        learning_rate=1e-5,
        per_device_train_batch_size=asked.micro,
        gradient_accumulation_steps=asked.pairs // asked.micro,
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        max_length=None,
        max_steps=10_000,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = trl.RewardTrainer(
        model=model,
        args=config,
        processing_class=PreTrainedTokenizerFast.from_pretrained(asked.folder / "policy"),
        train_dataset=Dataset.from_dict({name: [pair[i] for pair in pairs] for i, name in enumerate(NAMES)}),
    )
    parameters = sum(p.numel() for p in model.parameters())
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}

    class Halt(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            precision = f"weights {asked.weights}, autocast {trainer.accelerator.mixed_precision}, micro {asked.micro}"
            line.ready(versions=versions, precision=precision, parameters=parameters)
            line.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            line.report(updates=1, pairs=asked.pairs)
            line.wait()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Halt())
    trainer.train()


NAMES = ("chosen_ids", "rejected_ids")


def main() -> None:
    asked, line = options(), Line()
    pairs = json.loads((asked.folder / "pairs.json").read_text())
    (run_trl if asked.trl else run_preferent)(line, asked, pairs)


if __name__ == "__main__":
    main()
