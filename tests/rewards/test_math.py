"""LMM-R1's reward for mathematical answers, as it is by default; `tests/conformance` has upstream's."""

from collections.abc import Sequence

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.math import MathRule
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rewards.verify_pool import VerifyPool


RIGHT = {
    "60": (
        *("60", " 60. ", "$60$", r"\boxed{60}", r"\[60\]", r"\(60\)", "$$60$$", "60°", r"$60^\circ$", "60 degrees"),
        *("The answer is 60", "$x = 60$", "x=60", r"$59$, no: $60$", r"\boxed{7}, no \boxed{60}", "60.0", "120/2"),
        *("\uff16\uff10", r"\boxed{60} since $30+30$ is it", "$60", "60 units", r"$60\text{ cm}$", "6*10"),
    ),
    "1/2": ("0.5", r"$\frac12$", r"\frac{1}{2}", "50%", r"$50\%$", "50 percent", ".5", "1/2."),
    "-3": ("-3", "\u22123", "$-3$", "x = -3"),
    r"2\sqrt{3}": ("2√3", "2*sqrt(3)", r"$2\sqrt3$", r"\sqrt{12}", r"The side is 2√3"),
    r"25\pi": ("25π", "25 pi", r"$25\pi$", "The radius equals 5 and the area is 25π"),
    "1000": ("1,000", r"$1{,}000$", "10^3", "10**3", "1e3", "1 000"),
    "12 cm": ("12", "12 cm", "12cm", "$12$", "12 m", "It is 12cm."),
    "12 m/s": ("12 m/s", "12", r"$12\text{ m/s}$"),
    "{1, 2}": ("1, 2", "1 and 2", "2 or 1", r"$\{1,2\}$", "$1$ and $2$", "x=1, x=2", r"$1\text{ or }2$"),
    "(1,2)": ("(1,2)", "$(1, 2)$"),
    "(x+1)^2": ("x^2+2x+1", "$x^2 + 2x + 1$", "(1+x)^2"),
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}": (r"$\begin{pmatrix}1&2\\3&4\end{pmatrix}$",),
    r"x \le 3": (r"$(-\infty, 3]$", "x <= 3", r"$3 \ge x$"),
    "red": ("red", "Red.", r"$\text{red}$", r"\boxed{\text{red}}"),
    "B": (
        *(
            "B",
            "(B)",
            "B.",
            "B)",
            "B:",
            "B. 12 cm",
            "(B) 12 cm",
            "B 12 cm",
            "b",
            "(b)",
            "[B]",
            "option B",
            "Option (B)",
        ),
        *("choice B", "The answer is B.", "B is right", r"\text{B}", r"$\text{(B)}$", "$B$", r"\boxed{B}", "**B**"),
        *(
            "\uff22",
            "\uff08\uff22\uff09",
            "选B",
            "选 B",
            "选项B",
            "应选B",
            "故选:B",
            "答案是B",
            "答案\uff1aB",
            "B项",
            "B。",
            "B、",
        ),
        *("B. Not (A), which is smaller", "not A but B", r"\textbf{B}", r"\mathrm{B}"),
    ),
    "(A)": ("A", "a", "A is right", "A. 12"),
    "C. 12 cm": ("C", "C. 12 cm", "12 cm", "12", "$12$"),
    r"\text{D}": ("D", "$D$"),
    "AC": (
        *(
            "AC",
            "CA",
            "A, C",
            "C,A",
            "A and C",
            "(A)(C)",
            "(C) and (A)",
            "A、C",
            "A C",
            "ac",
            "a, c",
            "A & C",
            "[A, C]",
        ),
        *(
            r"\boxed{AC}",
            r"$A$, $C$",
            r"\text{A, C}",
            "**A**, **C**",
            r"\boxed{A} and \boxed{C}",
            "选AC",
            "答案是A、C",
        ),
        *("The answer is A and C.", "Options (A) and (C)", "A and C are right, not B", "AC is right", r"$A \cdot C$"),
        r"\boxed{A, C}, since B, D are wrong",
    ),
    "A, C": ("AC", "C, A", "a and c", r"$\{A, C\}$"),
    "A and C": ("AC", "A, C"),
    "(A), (C)": ("AC", "(C)(A)"),
    r"\text{B, C, and D}": ("BCD", "D, C, B", "B, C and D"),
    "A. C": ("A", "A. C"),  # an option, and its text
    "BAD": ("bad", "$bad$"),
    "ab": ("ba", "a*b"),
}
WRONG = {
    "60": ("", "...", "61", "$60$ or rather $61$", "160", "6", "x^60", r"\boxed{61} since $60$ is less"),
    "2": ("2ab+1", "The result is 2ab+1", "2*pi", "(1,2)", "x^2", "2^3", "2/3", "1, 3", "A. 2 is not it, 3"),
    "0": ("1 000", r"$\frac{1}{0}$"),
    "x=5": ("y=5", "x=6"),
    r"(-\infty, 3]": (r"$x \le 3$",),
    "red": ("der", "dark red", "blue"),
    "A": ("A triangle", "B", "A or B", "12 cm", "I know"),
    "C. 12 cm": ("B. 12 cm", "B"),
    "AC": (
        "A",
        "C",
        "ABC",
        "A, B, C",
        "AB",
        "A, not C",
        "A or C",
        "",
        "AC and B, D",
        r"\overline{AC}",
        r"\boxed{AB}, not A, C",
        "12",
    ),
    "A, C": ("A", "C", "A, B", "A, B, C", "A. C"),
    "BAD": ("ABD", "A, B, D"),
    "1/3": ("0.33", "0.333"),
}


def judged(pool: VerifyPool, answer: str, gold: str) -> float:
    [parts] = MathRule(pool).score([f"<think>t</think><answer>{answer}</answer>"], [(gold,)])
    return parts.accuracy


@pytest.mark.parametrize(("gold", "answers"), RIGHT.items(), ids=RIGHT)
def test_an_answer_is_right_in_any_usual_spelling(gold: str, answers: Sequence[str], pool: VerifyPool) -> None:
    assert [answer for answer in answers if judged(pool, answer, gold) != 1.0] == []


@pytest.mark.parametrize(("gold", "answers"), WRONG.items(), ids=WRONG)
def test_what_says_something_else_is_wrong(gold: str, answers: Sequence[str], pool: VerifyPool) -> None:
    assert [answer for answer in answers if judged(pool, answer, gold) != 0.0] == []


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("<think>t</think><answer>60</answer>", 1.5),
        (" <think>t</think><answer>60</answer>\n", 1.5),
        ("<think>t</think>\n<answer>60</answer>", 1.0),
        ("<think>t</think><answer>61</answer>", 0.5),
        (r"<think>\boxed{60}</think><answer>61</answer>", 0.5),
        ("<answer>59</answer><answer>60</answer>", 1.0),
        ("<think>t</think><answer>60</answer> I hope so.", 1.0),
        ("<think>60</think>60", 0.0),
        (r"It is $59$, no: \boxed{60}.", 1.0),
        (r"<think>\boxed{61}</think> so \boxed{59}, no: \boxed{60}", 1.0),
        (r"think it through</think>\boxed{60}", 1.0),
        (r"<think>\boxed{60}</think> so \boxed{61}", 0.0),
        (r"<think>\boxed{60}</think>", 0.0),
        (r"<think>\boxed{60}", 0.0),
        (r"\boxed{60}<answer>61</answer>", 0.0),
        (r"\boxed{60} <answer>60", 0.0),
        (r"\boxed{60", 0.0),
        ("<think>t</think><answer>60", 0.0),
        ("<think></think><answer>", 0.0),
        ("<think>t</think><answer></answer>", 0.5),
        ("", 0.0),
    ],
)
def test_form_and_final_answer_add_up(response: str, reward: float, pool: VerifyPool) -> None:
    assert RuleReward(MathRule(pool))([response], [["60"]]) == [reward]


def test_the_weight_of_the_form_is_a_key_and_any_accepted_answer_will_do(pool: VerifyPool) -> None:
    [parts] = MathRule(pool, format_weight=0.1).score(["<think>t</think><answer>0.5</answer>"], [("7", r"\frac12")])
    assert (parts.reward, parts.accuracy, parts.format, parts.searches) == (1.1, 1.0, 1.0, None)


def test_gold_answers_that_nothing_can_equal_are_found_before_training(pool: VerifyPool) -> None:
    golds = [
        ("60",),
        ("???",),
        ("A",),
        (r"\frac{",),
        ("red",),
        ("...",),
        ("",),
        ("正方形",),
        (r"\boxed{}",),
        ("1", "?"),
    ]
    found = MathRule(pool).unusable(golds)
    assert sorted(found) == [1, 3, 5, 6, 8, 9] and "'???' is no expression, number, option letter or word" in found[1]
    assert MathRule(pool, compat=True).unusable(golds) == {}


def test_a_row_without_an_answer_is_refused_unless_upstream_is_followed(pool: VerifyPool) -> None:
    response = "<think>t</think><answer>$1$</answer>"
    with pytest.raises(UserError, match="row 'x' has no accepted answer"):
        RuleReward(MathRule(pool))([response], [[]], id=["x"])
    queries = [f"<|im_start|>assistant\n{response}"]
    assert RuleReward(MathRule(pool, compat=True))([response], None, queries=queries) == [1.5]


def test_what_is_logged_speaks_of_no_search(pool: VerifyPool) -> None:
    logged: dict[str, float] = {}
    columns: dict[str, list[float]] = {}
    RuleReward(MathRule(pool))(["<answer>60</answer>", ""], [["60"], ["60"]], logged.__setitem__, columns.__setitem__)
    assert logged == {"reward/accuracy": 0.5, "format/valid": 0.0, "reward/given_up": 0.0}
    assert columns == {"accuracy": [1.0, 0.0], "format": [0.0, 0.0]}


def test_a_gold_answer_that_looks_like_a_list_is_one_answer(pool: VerifyPool) -> None:
    reward = RuleReward(MathRule(pool, format_weight=0.0))
    texts = ("<answer>$[1, 2]$</answer>", "<answer>1</answer>", "<answer>2</answer>")
    for gold in ("[1, 2]", ["[1, 2]"]):
        assert reward(texts, [gold] * 3) == [1.0, 0.0, 0.0]
    assert reward(["<answer>{2, 1}</answer>", "<answer>2</answer>"], ["{1, 2}"] * 2) == [1.0, 0.0]
    assert reward(["<answer>1</answer>", "<answer>2</answer>"], [["1", "2"]] * 2) == [1.0, 1.0]
    assert reward(["<answer>3.0</answer>"], [3]) == [1.0]
