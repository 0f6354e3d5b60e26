"""Values in prose: known answers on runs and studies made by hand, and what is refused."""

from __future__ import annotations

import math

import pytest

from benchmarks.agents import AGENTS
from benchmarks.formatting import NOT_COMPARABLE, NOT_MADE
from benchmarks.prose import VALUES, Evidence, filled, value_of
from benchmarks.reports.comparisons import BEST
from benchmarks.studies.results import METRICS
from kuaisim_gym.errors import ConfigError, DataFormatError
from tests.benchmarks.handmade import LIKE, OLDER, RUNS, TODAY, pair, result

T_975 = 12.706204736  # Student's t, one degree of freedom
STUDY = [
    {"study": "sensitivity", "dataset": TODAY, "seed": seed, "steps": steps, "fit": {"s": seconds},
     "rows": [{"policy": "a", "r": 0.5 + seed / 100, "r_ci95": 0.25}, {"policy": "b", "r": 9.0}]}
    for seed, steps, seconds in ((11, 5, 1.0), (15, 5, 3.0), (11, 500, 4.0), (15, 500, 6.0))
]  # fmt: skip
BIG = [
    {"study": "big", "seed": 11, "dataset": TODAY | {"seed": seed}, "kind": kind, "n": n, "s": n}
    for seed, kind, n in ((1, "a", 1200.4), (2, "a", 1204.4), (1, "b", 40.26), (2, "b", 40.26))
]
COST = {
    "study": "cost", "env": "KuaiRec-Fair-v0", "max_len": 30, "dataset": TODAY,
    "popularity": "positives", "rows": [
        {"policy": "quality", "slates": "any, no rule", "r_each": 0.5},
        {"policy": "quality", "slates": "quota", "r_each": 0.4, "d_r": -0.1, "d_r_ci95": 0.01},
    ],
}  # fmt: skip
EXPOSURE = [
    {"study": "exposure", "env": "KuaiRec-Fair-v0", "max_len": max_len, "seed": seed,
     "dataset": TODAY | other, "policy": "random", "metrics": {"gini": gini, "group_ad": None},
     "users": {}}
    for seed, max_len, gini, other in (
        (11, 30, 0.25, {}), (15, 30, 0.5, {}), (11, 50, 9.0, {}), (11, 30, 9.0, {"seed": 7}),
        (11, 30, 9.0, {"answers": "real"}), (11, 30, 9.0, OLDER),
    )
]  # fmt: skip
STUDIES = {
    "exposure": EXPOSURE, "sensitivity": STUDY, "big": BIG, "old": [{"dataset": OLDER, "n": 1}],
    "cost": [COST, COST | {"dataset": OLDER}],
}  # fmt: skip
EVIDENCE = Evidence(RUNS, lambda study: STUDIES.get(study, []))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("len dsrm-hrl kuairec 30", f"21.00 ± {T_975:.2f}"),
        ("len a2c kuairec 30", "30.00"),
        ("len flat kuairec 30", NOT_MADE),  # in an older world alone
        ("len dsrm-hrl kuairand 30", NOT_MADE),
        ("len dsrm-hrl kuairec 50", NOT_MADE),
        ("ad dsrm-hrl kuairec 30", "0.500 ± 0.000"),
        ("gain len dsrm-hrl hrl kuairec 30", "+1.00 ± 0.00"),
        ("gain len dsrm-hrl a2c kuairec 30", NOT_MADE),  # one seed in common
        ("gain len dsrm-hrl best-published kuairec 30", f"-3.25 ± {0.75 * T_975:.2f}"),
        ("verdict len dsrm-hrl hrl kuairec 30", "above"),
        ("verdict len hrl dsrm-hrl kuairec 30", "below"),
        ("verdict len dsrm-hrl quality+quota kuairec 30", "level with"),
        ("verdict len dsrm-hrl flat kuairec 30", NOT_MADE),
        ("share len dsrm-hrl bcq kuairec 30", "1.909"),  # 21 / 11
        ("share len dsrm-hrl flat kuairec 30", NOT_MADE),
        ("above len dsrm-hrl hrl all", "1 of 2"),
        ("level len dsrm-hrl hrl all", "1 of 2"),
        ("below len dsrm-hrl hrl all", "0 of 2"),
        ("above len dsrm-hrl hrl synthetic", "1 of 1"),
        ("above len dsrm-hrl hrl real", "0 of 1"),
        ("above len dsrm-hrl flat all", NOT_MADE),
        ("unbeaten len dsrm-hrl all", "TD3 (kuairec, T = 30)"),
        ("unbeaten len hrl real", NOT_MADE),
        ("beaten len dsrm-hrl all", "1 of 2"),
        ("deviation test_len dsrm-hrl kuairec 30", f"{math.sqrt(2):.3f}"),
        ("deviation test_len a2c kuairec 30", NOT_MADE),
        ("settled dsrm-hrl kuairec 30", "100"),
        ("settled flat kuairec 30", NOT_MADE),
        ("seconds dsrm-hrl kuairec 30", "10"),
        ("times dsrm-hrl hrl kuairec 30", "2.5"),
        ("times dsrm-hrl flat kuairec 30", NOT_MADE),
        ("published len SAC4IR kuairec 30", "21.97 ± 0.45"),
        ("published ad DSRM-HRL kuairand 50", "0.024 ± 0.009"),
        ("published-seconds DSRM-HRL", "15,909"),
        ("published-times DSRM-HRL SAC4IR", "2.4"),
        ("count runs all", "15"),
        ("count runs synthetic", "11"),
        ("count worlds all", "2"),
        ("count agents all", "6"),
        ("count trainings all", "13"),
        ("training-sessions all", "5,000 or 20,000"),
        ("trained hrl kuairec 30", "20,000"),
        ("trained flat kuairec 30", NOT_MADE),
        ("test-sessions real", "1,000"),
        ("seeds all", "11 and 15"),
        ("cost quality kuairec 30 positives", "20.0 ± 2.0 %"),
        ("cost quality kuairec 30 exposures", NOT_MADE),
        ("study sensitivity fit.s steps=5", f"2.000 ± {T_975:.3f}"),
        ("study sensitivity rows.r policy=a seed=11 steps=5", "0.610 ± 0.250"),
        ("study sensitivity rows.r policy=b seed=11 steps=5", "9.000"),
        ("study sensitivity fit.s steps=7", NOT_MADE),
        ("study big n kind=a dataset.seed=1", "1200"),
        ("study big n kind=b dataset.seed=1", "40.3"),
        ("contrast big n kind a b", f"+1162 ± {2 * T_975:.0f}"),  # by the world's seed
        ("exposure random gini", "0.375"),
        ("exposure random group_ad", NOT_MADE),
        ("exposure popularity gini", NOT_MADE),
        ("study old n", NOT_MADE),
        ("study labels rows.r", NOT_MADE),
        ("contrast sensitivity fit.s steps 500 5", "+3.000 ± 0.000"),
        ("contrast-verdict sensitivity fit.s steps 500 5", "above"),
        ("contrast sensitivity rows.r steps 500 5 policy=a", "+0.000 ± 0.000"),
        ("contrast-verdict sensitivity rows.r steps 500 5 policy=a", "level with"),
        ("contrast sensitivity fit.s steps 500 7", NOT_MADE),
        ("best len kuairec 30", "A2C"),
        ("best ad kuairec-like 30", NOT_MADE),
    ],
)  # fmt: skip
def test_values(expression: str, expected: str) -> None:
    runs = EVIDENCE.runs
    if BEST in expression or expression.startswith("gain len dsrm-hrl best"):
        runs = [run for run in runs if run["agent"] != "a2c"]
    assert value_of(expression, Evidence(runs, EVIDENCE.read)) == expected


def test_the_least_imbalance_is_the_best() -> None:
    runs = [run | {"metrics": run["metrics"] | {"ad": run["metrics"]["len"]}} for run in RUNS]
    assert value_of("best ad kuairec 30", Evidence(runs)) == "BCQ"
    assert value_of("unbeaten ad dsrm-hrl all", Evidence(runs)) == "TD3, BCQ (kuairec, T = 30)"
    assert value_of("beaten ad dsrm-hrl all", Evidence(runs)) == "0 of 2"
    assert value_of("beaten ad bcq all", Evidence(runs)) == "1 of 1"  # not itself


def test_seconds_of_trainings_of_different_sizes_are_not_compared() -> None:
    runs = [*pair("dsrm-hrl", 1.0, 2.0), *pair("hrl", 1.0, 2.0, episodes=5_000)]
    assert value_of("times dsrm-hrl hrl kuairec 30", Evidence(runs)) == NOT_COMPARABLE


def test_one_side_of_an_interval_must_leave_out_zero() -> None:
    def verdict(first: float, second: float) -> str:
        runs = [*pair("dsrm-hrl", first, second), *pair("hrl", 0.0, 0.0)]
        return value_of("verdict len dsrm-hrl hrl kuairec 30", Evidence(runs))

    # Mean 1, half-width T_975 * half the distance of the two.
    width = 1 / T_975
    assert verdict(1 - 0.99 * width, 1 + 0.99 * width) == "above"
    assert verdict(1 - 1.01 * width, 1 + 1.01 * width) == "level with"
    assert verdict(-1 - 0.99 * width, -1 + 0.99 * width) == "below"
    assert verdict(0.0, 0.0) == "level with"


def test_pages_are_filled_between_their_comments() -> None:
    text = (
        "Len <!-- = len a2c kuairec 30 -->1.00<!-- / -->, which is\n"
        "| a | <!-- = verdict len dsrm-hrl hrl kuairec 30 --><!-- / --> |\n<!-- summary -->\n"
    )
    expected = text.replace("1.00", "30.00").replace(" --><!-- / -->", " -->above<!-- / -->")
    assert filled(text, EVIDENCE, "page.md") == expected
    assert filled(expected, EVIDENCE, "page.md") == expected
    assert filled("no values\n", EVIDENCE, "page.md") == "no values\n"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", "expected one of above, ad, "),
        ("length hrl kuairec 30", "expected one of above, ad, "),
        ("len hrl kuairec", "expected the arguments AGENT DATASET T"),
        ("len hrl kuairec 30 50", "expected the arguments AGENT DATASET T"),
        ("len hlr kuairec 30", "expected an agent instead of 'hlr'"),
        ("len best-published kuairec 30", "expected an agent instead of 'best-published'"),
        ("len hrl kuairek 30", "instead of 'kuairek'"),
        ("len hrl kuairec 3O", "expected a whole number of steps instead of '3O'"),
        ("gain lens hrl dsrm-hrl kuairec 30", "expected one of len, r_each"),
        ("above len hrl dsrm-hrl some", "expected one of all, synthetic, real instead of 'some'"),
        ("published len SAC4IF kuairec 30", "instead of 'SAC4IF'"),
        ("published q A2C kuairec 30", "expected a published figure"),
        ("published len A2C kuairec-like 30", "expected a published figure"),
        ("published-seconds TD3", "expected one of A2C, DNaIR"),
        ("count cells all", "expected one of runs, worlds"),
        ("cost quality kuairec 30 clicks", "expected one of exposures, positives"),
        ("exposure best gini", "expected one of random, popularity"),
        ("exposure random len", "expected one of group_ad, "),
        ("exposure random", "expected the arguments RULE VIEW"),
        ("study sensitivity rows.q", "expected a path to numbers of the study sensitivity"),
        ("study sensitivity fit.s step=5", "expected conditions on "),
        ("study sensitivity fit.s steps", "expected KEY=VALUE instead of 'steps'"),
        ("study sensitivity", "expected the arguments STUDY PATH KEY=VALUE..."),
        ("contrast sensitivity rows.r steps 500 5", "expected one number a seed"),
        ("study 'sensitivity", "expected No closing quotation"),
    ],
)  # fmt: skip
def test_a_malformed_expression_names_page_expression_and_what_is_expected(
    expression: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        filled(f"x <!-- = {expression} -->?<!-- / -->", EVIDENCE, "docs/page.md")
    assert str(error.value).startswith(f"docs/page.md: in <!-- = {expression} --> expected ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!-- = count runs all -->?<!-- / -->", "begins a line"),
        ("word\n  <!-- = count runs all -->?<!-- / -->", "begins a line"),
        ("* <!-- = count runs all -->?<!-- / -->", "begins a line"),
        ("1. <!-- = count runs all -->?<!-- / -->", "begins a line"),
        ("x <!-- = count runs all -->?", "is no pair"),
        ("x ?<!-- / -->", "is no pair"),
        ("x <!-- = count runs all -->? <!-- = count runs all -->?<!-- / -->", "is no pair"),
    ],
)
def test_comments_that_are_no_pair_or_begin_a_line_are_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^docs/page.md: .*{expected}"):
        filled(text, EVIDENCE, "docs/page.md")


def test_only_the_paper_s_rule_in_the_world_of_seed_0_counts() -> None:
    other = [
        result("hrl", 11, 20.0, TODAY | {"seed": 101, "fingerprint": "s" * 16}),
        result("hrl", 11, 20.0) | {"env": "KuaiRec-Dynamic-v0"},
        result("hrl", 11, 20.0) | {"env": "KuaiRand-Request-v0"},
    ]
    assert value_of("count runs all", Evidence(other)) == "0"
    assert value_of("count runs all", Evidence([*RUNS, *other])) == "15"


def test_two_worlds_of_one_name_and_length_are_refused() -> None:
    runs = [*RUNS, result("hrl", 11, 20.0) | {"slate_size": 5}]
    with pytest.raises(ConfigError, match="one world of kuairec, T = 30, but the results"):
        value_of("len hrl kuairec 30", Evidence(runs))


def test_metrics_that_are_no_numbers_are_refused() -> None:
    runs = [*pair("dsrm-hrl", 20.0, 22.0), *pair("hrl", 1.0, math.nan)]
    with pytest.raises(DataFormatError, match="of hrl, seed 15, .* has no number for len: make"):
        value_of("len dsrm-hrl kuairec 30", Evidence(runs))


@pytest.mark.parametrize("word", ["gain", "verdict"])
def test_agents_of_other_training_sizes_are_not_compared(word) -> None:
    runs = [*pair("dsrm-hrl", 20.0, 20.1), *pair("hrl", 18.0, 18.1, episodes=5_000)]
    assert value_of(f"{word} len dsrm-hrl hrl kuairec 30", Evidence(runs)) == NOT_COMPARABLE


def test_rows_without_runs_are_named_but_for_rules_and_the_paper_s() -> None:
    left_out = ("hsrl", "maskable-ppo")  # which shows one item a step
    runs = [result(name, 11, 1.0) for name in AGENTS if name not in (*left_out, "td3", "random")]
    assert value_of("unmade synthetic", Evidence(runs)) == "*hsrl*"
    assert value_of("unmade synthetic", Evidence([*runs, result("hsrl", 11, 1.0)])) == "none"
    everywhere = [*runs, result("hsrl", 11, 1.0, LIKE)]
    assert value_of("unmade all", Evidence(everywhere)) == "none"
    assert "*ppo*, " in value_of("unmade real", Evidence(everywhere))


def test_shares_are_of_the_same_seeds() -> None:
    runs = [result("dsrm-hrl", 11, 10.0), result("dsrm-hrl", 15, 30.0), result("hrl", 15, 30.0)]
    assert value_of("share len dsrm-hrl hrl kuairec 30", Evidence(runs)) in ("1.000", "not made")


def test_every_value_is_tried_here() -> None:
    from benchmarks.reports import answers  # registers more

    marks = test_values.pytestmark
    tried = {row[0].split()[0] for mark in marks for row in mark.args[1]}
    assert VALUES.keys() - tried <= {*METRICS, "made", "unmade"}
    assert answers.EPISODES == 20_000
