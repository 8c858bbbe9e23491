"""Rules about the comparison: its judges, its uncertainty, and other differences between the two sides."""

from collections.abc import Iterator

from preferent.doctor.findings import RELATIVE, SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import RunHistory
from preferent.evaluation import judge_quality, verdict_sentence
from preferent.evaluation.comparison_types import JudgeFigures
from preferent.evaluation.judges.protocol import MUCH_UNPARSABLE
from preferent.evaluation.reward_findings import BY_LENGTH

FILE = RELATIVE.comparison.metrics.as_posix()
AGREEMENT = 0.5
"""Two random judges agree on half of the pairs."""
BY_PLACE = 0.1
"""Distance from one half of the share of verdicts for the answer shown first."""
LENGTHS = 1.5
"""Ratio of lengths; judges, including people, prefer the longer answer (Dubois et al. 2024)."""
ERRORS = 2.0
"""Standard errors."""
IDENTICAL = 0.5
"""Share of pairs with equal answers."""
ENDED = 0.1
"""Difference in the share of answers that end."""


def proxy_up_judge_down(history: RunHistory) -> Iterator[Finding]:
    judges = history.verdict.get("judges", {})
    proxy, judge = judges.get("reward"), judges.get("judge")
    if proxy and judge and proxy["interval"][0] > 0.5 > judge["interval"][1]:
        yield Finding(
            "proxy-up-judge-down",
            SICK,
            "The tuned model is better according to the optimised reward and worse according to the independent judge: "
            "the policy exploited the reward.",
            (_rate("reward", proxy), _rate("judge", judge)),
            "Raise kl_coeff, stop earlier (ppo.kl_budget), and give the reward model more preferences, ideally among "
            "answers of the tuned model.",
        )


def tuned_is_worse(history: RunHistory) -> Iterator[Finding]:
    judges = history.verdict.get("judges", {})
    name = history.verdict.get("headline")
    if name and judges[name]["interval"][1] < 0.5 and all(judge["interval"][0] <= 0.5 for judge in judges.values()):
        yield Finding(
            "tuned-is-worse",
            SICK,
            "The tuned model loses against the model it started from.",
            tuple(_rate(*judge) for judge in judges.items()),
            "See the findings about the policy; if there are none, see those about the reward model.",
        )


def verdict_open(history: RunHistory) -> Iterator[Finding]:
    name, judge = history.verdict.get("headline"), _headline(history)
    if name and judge and judge["interval"][0] <= 0.5 <= judge["interval"][1]:
        yield Finding(
            "verdict-open",
            SUSPICIOUS,
            "The interval of the win rate contains 50 %: neither model is shown to be better.",
            (_rate(name, judge), Evidence(FILE, "prompts", judge["prompts"])),
            "Compare on more prompts (eval_dataset, infer.max_prompts), or tune further.",
        )


def judge_not_independent(history: RunHistory) -> Iterator[Finding]:
    """Find a verdict of the optimised reward, or of a judge that learned from the same pairs."""
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
            "The judge learned from the same preferences as the reward model, and shares its errors.",
            tuple(
                Evidence(RELATIVE.stage(name).description.as_posix(), "inputs.train", str(fingerprint)[:12])
                for name, fingerprint in trained.items()
            ),
            advice,
        )


def no_judge(history: RunHistory) -> Iterator[Finding]:
    if history.verdict and not history.verdict.get("headline"):
        yield Finding(
            "no-judge",
            SUSPICIOUS,
            "The answers were compared only by length and ROUGE: there was no judge.",
            (Evidence(FILE, "headline", "null"),),
            "Give `preferent compare` a judge (--in judge=FOLDER), or add a preference_dataset to the recipe.",
        )


def judge_cannot_tell(history: RunHistory) -> Iterator[Finding]:
    """Find a headline by an independent judge that is not shown to judge, or was not measured."""
    name, judge = history.verdict.get("headline"), _headline(history)
    if not name or judge is None or not judge["independent"] or (ability := judge_quality.ability(judge)).tells:
        return
    accuracy = judge.get("accuracy")
    if accuracy is None:
        says = f"Nobody measured how often the headline judge, {name}, is right."
        evidence = Evidence(FILE, f"judges.{name}.accuracy", "not measured")
    else:
        says = f"The headline judge, {name}, cannot tell: it is right on {verdict_sentence.right_on(accuracy)}, and "
        says += f"{ability.why}."
        evidence = Evidence(FILE, f"judges.{name}.accuracy", f"{accuracy['share']:.3f}")
    yield Finding(
        "judge-cannot-tell",
        SICK if ability.measured else SUSPICIOUS,
        says,
        (evidence,),
        "Give the judge more or cleaner preferences (compare.judge_share) and more test pairs (data.test_share), or "
        "let people vote: preferent label RUN.",
    )


def judges_disagree(history: RunHistory) -> Iterator[Finding]:
    for pair in history.verdict.get("agreement", []):
        if pair["percent"] < AGREEMENT:
            names = " and ".join(pair["judges"])
            yield Finding(
                "judges-disagree",
                SUSPICIOUS,
                f"{names} agree less often than two random judges.",
                (Evidence(FILE, f"agreement of {names}", pair["percent"]), Evidence(FILE, "n", pair["n"])),
                "Check whether one of them has no-better-than-trivial; look at the pairs on which they disagree.",
            )


def judge_follows_length(history: RunHistory) -> Iterator[Finding]:
    for name, judge in history.verdict.get("judges", {}).items():
        correlation = judge.get("length_correlation", 0.0)
        if abs(correlation) > BY_LENGTH:
            yield Finding(
                "judge-follows-length",
                SUSPICIOUS,
                f"On these answers the scores of {name} follow the length: the verdict may be about length only.",
                (Evidence(FILE, f"judges.{name}.length_correlation", correlation),),
                "Compare among pairs of similar length; see scores-follow-length.",
            )


def judge_follows_place(history: RunHistory) -> Iterator[Finding]:
    for name, judge in history.verdict.get("judges", {}).items():
        order = judge.get("order", {})
        share, interval = order.get("first_slot"), order.get("first_slot_interval")
        if interval and share is not None and not interval[0] <= 0.5 <= interval[1] and abs(share - 0.5) > BY_PLACE:
            yield Finding(
                "judge-follows-place",
                SUSPICIOUS,
                f"The order of the answers decides many verdicts of {name}; these cancel out and carry no information.",
                (Evidence(FILE, f"judges.{name}.order.first_slot", f"{share:.3f}"),),
                "Use a stronger judge or more votes; trust it only as far as it agrees with people.",
            )


def verdicts_unparsable(history: RunHistory) -> Iterator[Finding]:
    for name, judge in history.verdict.get("judges", {}).items():
        share = judge.get("order", {}).get("unparsable_share", 0.0)
        if share > MUCH_UNPARSABLE:
            yield Finding(
                "verdicts-unparsable",
                SUSPICIOUS,
                f"Many replies of {name} contain no verdict; its win rate leaves them out.",
                (Evidence(FILE, f"judges.{name}.order.unparsable_share", f"{share:.3f}"),),
                "Compare with judges.*.unparsable_as_ties; raise max_tokens, or change the judge's template.",
            )


def judge_against_people(history: RunHistory) -> Iterator[Finding]:
    for name, judge in history.verdict.get("against_people", {}).items():
        if judge_quality.contradicted(judge):
            yield Finding(
                "judge-against-people",
                SICK,
                f"{name} contradicts people on most of the pairs on which both chose a side.",
                (Evidence(FILE, f"against_people.{name}.accuracy", f"{judge['accuracy']:.3f}"),),
                "Do not rely on this judge: set compare.headline: people, and look at what it rewards on those pairs.",
            )


def length_changed(history: RunHistory) -> Iterator[Finding]:
    length = history.verdict.get("length")
    error = length["standard_error"] if length else None
    if not length or error is None or abs(length["difference"]) <= ERRORS * error:
        return
    longer, shorter = sorted((length["mean_a"], length["mean_b"]), reverse=True)
    if longer > LENGTHS * shorter:
        yield Finding(
            "length-changed",
            SUSPICIOUS,
            "The tuned answers are much longer or shorter than those of the base, and judges may reward that alone.",
            (
                Evidence(FILE, "length.mean_a", length["mean_a"]),
                Evidence(FILE, "length.mean_b", length["mean_b"]),
            ),
            "Read pairs of similar length in the report; if length is not a merit, see scores-follow-length.",
        )


def answers_identical(history: RunHistory) -> Iterator[Finding]:
    identical, rows = history.verdict.get("identical", 0), history.verdict.get("rows", 0)
    if identical > IDENTICAL * rows:
        yield Finding(
            "answers-identical",
            SUSPICIOUS,
            "Most answers of the tuned model equal those of the base: there was little to judge.",
            (Evidence(FILE, "identical", identical), Evidence(FILE, "rows", rows)),
            "Tune further, or compare sampled answers (infer.sampling_strategy: temperature_sampling).",
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


def _headline(history: RunHistory) -> JudgeFigures | None:
    name = history.verdict.get("headline")
    return history.verdict["judges"][name] if name else None


def _rate(name: str, judge: JudgeFigures) -> Evidence:
    low, high = judge["interval"]
    return Evidence(FILE, f"judges.{name}.win_rate", f"{judge['win_rate']:.3f} ({low:.3f} to {high:.3f})")


RULES = (
    proxy_up_judge_down,
    tuned_is_worse,
    verdict_open,
    judge_not_independent,
    no_judge,
    judge_cannot_tell,
    judges_disagree,
    judge_follows_length,
    judge_follows_place,
    verdicts_unparsable,
    judge_against_people,
    length_changed,
    answers_identical,
    ends_less_often,
)
