"""Rules about the comparison: who judged, how sure it is, and what else differs between the two sides."""

from collections.abc import Iterator

from preferent.doctor.findings import SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import Row, RunHistory
from preferent.evaluation.judges.protocol import MUCH_UNPARSABLE
from preferent.evaluation.reward_findings import BY_LENGTH

FILE = "comparison/metrics.json"
AGREEMENT = 0.5
"""Two coins agree on half of the pairs."""
BY_PLACE = 0.1
"""Distance from one half of how often the answer shown first is chosen."""
LENGTHS = 1.5
"""Times longer or shorter; judges, people among them, prefer the longer answer (Dubois et al. 2024)."""
ERRORS = 2.0
IDENTICAL = 0.5
"""Share of pairs with nothing to judge."""
ENDED = 0.1
"""Share of answers: ten points fewer that end."""


def proxy_up_judge_down(history: RunHistory) -> Iterator[Finding]:
    judges = history.verdict.get("judges", {})
    proxy, judge = judges.get("reward"), judges.get("judge")
    if proxy and judge and proxy["interval"][0] > 0.5 > judge["interval"][1]:
        yield Finding(
            "proxy-up-judge-down",
            SICK,
            "By the reward that was raised the tuned model is better, by the independent judge it is worse: the reward "
            "was exploited.",
            (_rate("reward", proxy), _rate("judge", judge)),
            "Raise kl_coeff, stop earlier (ppo.kl_budget), and give the reward model more preferences, best of answers "
            "that the tuned model gives.",
        )


def tuned_is_worse(history: RunHistory) -> Iterator[Finding]:
    judges = history.verdict.get("judges", {})
    name = history.verdict.get("headline")
    if name and judges[name]["interval"][1] < 0.5 and all(found["interval"][0] <= 0.5 for found in judges.values()):
        yield Finding(
            "tuned-is-worse",
            SICK,
            "The tuned model loses against the model it started from.",
            tuple(_rate(one, found) for one, found in judges.items()),
            "See the findings about the policy; where there are none, about the reward model.",
        )


def verdict_open(history: RunHistory) -> Iterator[Finding]:
    found = _headline(history)
    if found and found["interval"][0] <= 0.5 <= found["interval"][1]:
        yield Finding(
            "verdict-open",
            SUSPICIOUS,
            "The interval of the win rate holds 50 %: it is not shown that either model is better.",
            (_rate(history.verdict["headline"], found), Evidence(FILE, "prompts", found["prompts"])),
            "Compare on more prompts (eval_dataset, infer.max_prompts), or tune further.",
        )


def judge_not_independent(history: RunHistory) -> Iterator[Finding]:
    """The verdict of the optimised reward, or of a judge that learned from the same pairs."""
    advice = "Set compare.judge: independent and compare.judge_share above 0."
    if history.verdict.get("headline") == "reward":
        yield Finding(
            "judge-not-independent",
            SUSPICIOUS,
            "The verdict comes from the reward that the policy was tuned to raise.",
            (Evidence(FILE, "headline", "reward"),),
            advice,
        )
    trained = {name: history.stages.get(name, {}).get("inputs", {}).get("train") for name in ("reward", "judge")}
    if trained["judge"] is not None and trained["judge"] == trained["reward"]:
        yield Finding(
            "judge-not-independent",
            SUSPICIOUS,
            "The judge learned from the very preferences that the reward model learned from, and shares its errors.",
            tuple(Evidence(f"{name}/stage.json", "inputs.train", str(found)[:12]) for name, found in trained.items()),
            advice,
        )


def no_judge(history: RunHistory) -> Iterator[Finding]:
    if history.verdict and not history.verdict.get("headline"):
        yield Finding(
            "no-judge",
            SUSPICIOUS,
            "The answers were compared by length and ROUGE only: nobody judged them.",
            (Evidence(FILE, "headline", "null"),),
            "Give `preferent compare` a judge (--in judge=FOLDER), or the recipe a preference_dataset.",
        )


def judges_disagree(history: RunHistory) -> Iterator[Finding]:
    for found in history.verdict.get("agreement", []):
        if found["percent"] < AGREEMENT:
            names = " and ".join(found["judges"])
            yield Finding(
                "judges-disagree",
                SUSPICIOUS,
                f"{names} agree less often than two coins.",
                (Evidence(FILE, f"agreement of {names}", found["percent"]), Evidence(FILE, "n", found["n"])),
                "See which of the two is no better than trivial; look at the pairs on which they disagree.",
            )


def judge_follows_length(history: RunHistory) -> Iterator[Finding]:
    for name, found in history.verdict.get("judges", {}).items():
        if abs(found.get("length_correlation", 0.0)) > BY_LENGTH:
            yield Finding(
                "judge-follows-length",
                SUSPICIOUS,
                f"On these answers the scores of {name} go with length: the verdict may be one about length.",
                (Evidence(FILE, f"judges.{name}.length_correlation", found["length_correlation"]),),
                "Compare among pairs of like length; see scores-follow-length.",
            )


def judge_follows_place(history: RunHistory) -> Iterator[Finding]:
    for name, found in history.verdict.get("judges", {}).items():
        order = found.get("order", {})
        share, interval = order.get("first_slot"), order.get("first_slot_interval")
        if interval and not interval[0] <= 0.5 <= interval[1] and abs(share - 0.5) > BY_PLACE:
            yield Finding(
                "judge-follows-place",
                SUSPICIOUS,
                f"Where an answer stands decides much of what {name} says: it cancels, and tells nothing.",
                (Evidence(FILE, f"judges.{name}.order.first_slot", f"{share:.3f}"),),
                "Take a stronger judge, or more votes; trust it no further than it agrees with people.",
            )


def verdicts_unparsable(history: RunHistory) -> Iterator[Finding]:
    for name, found in history.verdict.get("judges", {}).items():
        share = found.get("order", {}).get("unparsable_share", 0.0)
        if share > MUCH_UNPARSABLE:
            yield Finding(
                "verdicts-unparsable",
                SUSPICIOUS,
                f"Of {name} many replies held no verdict; its win rate is over the others.",
                (Evidence(FILE, f"judges.{name}.order.unparsable_share", f"{share:.3f}"),),
                "Compare with judges.*.unparsable_as_ties; raise max_tokens, or change the judge's template.",
            )


def judge_against_people(history: RunHistory) -> Iterator[Finding]:
    for name, found in history.verdict.get("against_people", {}).items():
        interval = found["intervals"].get("accuracy")
        if interval and interval[1] < 0.5:
            yield Finding(
                "judge-against-people",
                SICK,
                f"{name} contradicts people on most pairs on which both chose a side.",
                (Evidence(FILE, f"against_people.{name}.accuracy", f"{found['accuracy']:.3f}"),),
                "Do not go by this judge: compare.headline: people; and see what it rewards on those pairs.",
            )


def length_changed(history: RunHistory) -> Iterator[Finding]:
    length = history.verdict.get("length")
    if not length or abs(length["difference"]) <= ERRORS * length["standard_error"]:
        return
    longer, shorter = sorted((length["mean_a"], length["mean_b"]), reverse=True)
    if longer > LENGTHS * shorter:
        yield Finding(
            "length-changed",
            SUSPICIOUS,
            "The tuned answers are much longer or shorter than the base's, which judges may reward for itself.",
            tuple(Evidence(FILE, f"length.{name}", length[name]) for name in ("mean_a", "mean_b")),
            "Read pairs of like length in the report; where length is no merit, see scores-follow-length.",
        )


def answers_identical(history: RunHistory) -> Iterator[Finding]:
    identical, rows = history.verdict.get("identical", 0), history.verdict.get("rows", 0)
    if identical > IDENTICAL * rows:
        yield Finding(
            "answers-identical",
            SUSPICIOUS,
            "Most answers of the tuned model are those of the base: there was little to judge.",
            (Evidence(FILE, "identical", identical), Evidence(FILE, "rows", rows)),
            "Tune further, or compare sampled answers: infer.sampling_strategy: temperature_sampling.",
        )


def ends_less_often(history: RunHistory) -> Iterator[Finding]:
    ended = history.verdict.get("ended", {})
    if "a" in ended and "b" in ended and ended["a"] < ended["b"] - ENDED:
        yield Finding(
            "ends-less-often",
            SUSPICIOUS,
            "The tuned model ends its answers less often than the base.",
            tuple(Evidence(FILE, f"ended.{side}", ended[side]) for side in ("a", "b")),
            "Raise target_sequence_length, or lower reward.missing_eos_score.",
        )


def _headline(history: RunHistory) -> Row | None:
    name = history.verdict.get("headline")
    return history.verdict["judges"][name] if name else None


def _rate(name: str, found: Row) -> Evidence:
    low, high = found["interval"]
    return Evidence(FILE, f"judges.{name}.win_rate", f"{found['win_rate']:.3f} ({low:.3f} to {high:.3f})")


RULES = (
    proxy_up_judge_down,
    tuned_is_worse,
    verdict_open,
    judge_not_independent,
    no_judge,
    judges_disagree,
    judge_follows_length,
    judge_follows_place,
    verdicts_unparsable,
    judge_against_people,
    length_changed,
    answers_identical,
    ends_less_often,
)
