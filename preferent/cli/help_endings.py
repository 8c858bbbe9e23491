"""What the help of each verb ends with: commands to try, and the guide that tells more."""

REWARD = "reward=runs/my/reward/model"


def _parts(kind: str, *more: str) -> list[str]:
    return [f"{part}=runs/my/data/{kind}/{part}.jsonl" for part in ("train", "validation", *more)]


def _stage(verb: str, folder: str, *inputs: str) -> str:
    """Return the command of a stage, an input a line."""
    words = [f"preferent {verb} --recipe my.yaml", *(f"--in {each}" for each in inputs), f"--out runs/my/{folder}"]
    return " \\\n      ".join(words)


EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": ("tutorials", "preferent quickstart", "preferent quickstart runs/again --seed 1"),
    "recipe": ("recipe", "preferent recipe init my.yaml"),
    "recipe init": ("recipe", "preferent recipe init my.yaml", "preferent recipe init my.yaml --from dpo"),
    "data": ("data", "preferent data check data/preference.jsonl"),
    "data check": (
        "data",
        "preferent data check data/preference.jsonl data/prompt.jsonl --model models/base",
        "preferent data check rows.csv --columns prompt=question,chosen=better,rejected=worse",
    ),
    "data convert": (
        "feedback",
        "preferent data convert data/preference.jsonl --to trl --out data/trl.jsonl",
        "preferent data convert feedback-history-export-1.json --out data/feedback",
    ),
    "data prepare": ("data", "preferent data prepare --recipe my.yaml --out runs/my/data"),
    "plan": (
        "verbs",
        "preferent plan my.yaml",
        "preferent plan my.yaml --memory 80GiB",
        "preferent plan my.yaml --calibrate",
        "preferent plan my.yaml --card h100-80g --gpus 8 --nodes 2 --network 50GB/s",
    ),
    "run": (
        "run",
        "preferent run my.yaml --dry-run",
        "preferent run my.yaml",
        "preferent run my.yaml --out runs/longer --from ppo --of runs/my --set reinforcement_learning_train_steps=2000",
        "preferent run my.yaml --out runs/my-2 --with-labels runs/my",
    ),
    "doctor": ("doctor", "preferent doctor runs/my"),
    "report": (
        "report",
        "preferent report runs/my",
        "preferent report runs/my --out my.html",
        "preferent report --recipe my.yaml --in run=runs/my --out runs/my",
    ),
    "try": ("verbs", "preferent try runs/my", "preferent try runs/my --greedy --tokens 32"),
    "export": (
        "verbs",
        "preferent export runs/my --out exported/model",
        "preferent export runs/my --what gguf --out exported/gguf",
    ),
    "compare": (
        "compare",
        "preferent compare runs/my runs/other",
        "preferent compare models/a models/b --prompts data/prompt.jsonl --judge http://localhost:11434/v1#llama3.1",
    ),
    "label": (
        "label",
        "preferent label runs/my",
        "preferent label runs/my --on train --number 200",
        "preferent label runs/my --on train --thumbs",
        "preferent label runs/my --host 192.168.1.5 --annotators ann,bob,cyd --overlap 2",
    ),
    "agree": (
        "few_votes",
        "preferent agree gpt.jsonl qwen.jsonl --people people.jsonl",
        "preferent agree runs/my/labels/judgments.jsonl --judge http://localhost:8000/v1#llama-3-70b --votes 2",
    ),
    "import": ("gguf", "preferent import MODEL.gguf --out models/mine"),
    "scratch": ("verbs", "preferent scratch --text corpus.txt --out models/base --layers 4"),
    "train-job": (
        "kubeflow",
        "preferent train-job my.yaml ppo --nodes 2 --gpus 8 --image registry.example/preferent:0.2.0 --claim runs",
    ),
    "completion": ("verbs", 'eval "$(preferent completion)"'),
    "env": ("verbs", "preferent env", "preferent env --json"),
    "sft": ("run", _stage("sft", "sft", "model=models/base")),
    "reward": ("reward_model", _stage("reward", "reward", "model=models/base", *_parts("preference", "test"))),
    "ppo": ("algorithms/ppo", _stage("ppo", "policy", "model=models/base", *_parts("prompt"), REWARD)),
    "dpo": ("algorithms/dpo", _stage("dpo", "policy", "model=models/base", *_parts("preference", "test"))),
    "rejection": (
        "algorithms/rejection_sampling",
        _stage("rejection", "policy", "model=models/base", *_parts("prompt"), REWARD),
    ),
    "infer": ("run", _stage("infer", "predictions/tuned", "model=runs/my/policy/model", "prompts=data/prompt.jsonl")),
}
"""By the words of the verb: the page of the guide below `docs`, and then the commands."""


def ending(verb: str) -> str:
    """Return the end of a verb's help."""
    guide, *commands = EXAMPLES[verb]
    lines = ["example:" if len(commands) == 1 else "examples:", *(f"  {command}" for command in commands)]
    return "\n".join(
        [*lines, "", f"Guide: docs/{guide}.md in the source, or its page on the site that `make docs` builds."]
    )
