"""The checks on paraphrases: each fires on its fault, and none on sound texts."""

from itertools import product

import pytest
from tiny import refusal

from sapo.conf.schema import ParaphrasesConfig, settings
from sapo.data.pool_checks import (
    Problem,
    check_pool,
    check_text,
    likeness,
    quoted_literals,
    require_usable,
    scripts,
    words_of,
)
from sapo.data.pools import load_pool
from sapo.data.prompts import pool_of, read_pool
from sapo.data.tasks import Task

INSTRUCTION = 'In this task, you are given a tweet. Classify it as "POS" or "NEG" by its sentiment.'
TASK = Task("tweets", INSTRUCTION, "Directly output only POS or NEG as your answer.", (), (), ("POS", "NEG"))
SAYS = "it says 'Here is a version', which belongs to the work of paraphrasing, not to the task"
SOUND = 'Read the tweet below. Is its sentiment good ("POS") or bad ("NEG")?'


def reason_of(text: str, about: Task, *accepted: str) -> str:
    """What is said first of a text, by reason and rule; "" of one that passes."""
    return str(check_text(text, about, accepted) or "")


def task(instruction: str, labels: tuple[str, ...] = (), suffix: str = "", language: str = "en") -> Task:
    return Task("some", instruction, suffix, (), (), labels, language=language)


def test_measures_by_hand():
    assert likeness(words_of("a b c d e"), words_of("E, b c A. x")) == 4 / 5
    assert likeness(words_of("a a b"), words_of("a b")) == 2 / 3
    assert likeness(words_of("一二三四"), words_of("二三四五六")) == 3 / 5  # a Chinese character is a word
    assert likeness([], []) == 1.0
    assert scripts("判断Ａ。") == {"CJK": 2 / 3, "LATIN": 1 / 3}
    assert scripts("はいカード") == {"KANA": 1.0}
    assert scripts("12 !") == {}


# --- one text ----------------------------------------------------------------------------------------------

GAP = task('Fill in the "_" where it stands, please do.')
STORY = task("Tell what the small animals of this story want from each other.")
QUESTION = task("Answer the question on the paragraph that you are given here.", suffix="Answer:")
SUFFIX = "Directly output only POS or NEG as your answer."
FAULTS = [  # a text that breaks a rule of TASK, or of another task, and what is said of it
    ("empty", "", "it is empty"),
    ("size", "word " * 50_000, "it has 250,000 characters; a prompt may have 100,000"),
    ("blanks", SOUND + " ", "begins or ends with blanks"),
    ("lines", SOUND.replace(". ", ".\n"), "line breaks"),
    ("invisible", SOUND.replace("tweet", "tw\x00eet"), "control"),
    ("invisible", SOUND.replace("tweet", "tw\u200beet"), "invisible"),
    ("quotes", f"“{SOUND}”", "stands in quotes"),
    ("quotes", "'Tell POS from NEG, given the sentiment of some tweet.'", "stands in quotes"),
    ("braces", SOUND + " {input}", "braces"),
    ("labels", SOUND.replace("POS", "Pos"), "lost the label 'POS'"),
    ("labels", SOUND.replace('"POS"', "POSITIVE"), "lost the label 'POS'"),
    ("labels", "Read the tweet below. Is its sentiment good or bad?", "lost the labels 'POS', 'NEG'"),
    ("quoted", "The gap is to be filled, so fill it.", "it lost '_', which the original quotes", GAP),
    ("marks", "Paraphrase: " + SOUND, "'Paraphrase'"),
    ("marks", "Here is the instruction in other words. " + SOUND, "'Here is the instruction'"),
    ("marks", "Reworded, the task is this. " + SOUND, "'Reworded'"),
    ("marks", "The rewritten instruction: " + SOUND, "'rewritten instruction'"),
    ("marks", "Sure, " + SOUND, "'Sure,'"),
    ("marks", "The original text asks to tell POS from NEG, of a tweet.", "'The original text'"),
    ("marks", f"<paraphrase>{SOUND}</paraphrase>", "'paraphrase'"),
    ("marks", "1. " + SOUND, "'1.'"),
    ("marks", "- " + SOUND, "'-'"),
    ("marks", "Option 3: " + SOUND, "'Option 3:'"),
    ("marks", "**Task** " + SOUND, "'**'"),
    ("suffix", f"{SOUND} {SUFFIX}", "repeats the suffix"),
    ("suffix", SOUND + " directly output ONLY pos or neg as your answer", "repeats the suffix"),
    (
        "suffix",
        "Use the paragraph given to deal with its question. Answer:",
        "the suffix 'Answer:'",
        QUESTION,
    ),
    (
        "script",
        "Определите тональность твита: POS или NEG, прочитав его текст.",
        "not Latin as the original: 1",
    ),
    ("length", "POS or NEG tweet?", "it has 17 characters and the original 84 (allowed: 25 to 300)"),
    ("length", SOUND + " Think about it well." * 12, "characters and the original"),
    ("words", "Such a lovely day it has been, really.", "it has none of the original's", STORY),
    ("same", INSTRUCTION, "the same as the original"),
    ("near", INSTRUCTION.replace("tweet", "Tweet"), "the original: words are the same, labels left out"),
    ("near", INSTRUCTION.replace("given a", "shown a"), "nearly the original: 93% of its words are the same"),
    (
        "near",
        'Classify it as "NEG" or "POS" by its sentiment. In this task, you are given a tweet.',
        "nearly the original: words are the same",
    ),
]


def test_every_rule_has_a_fault():
    assert {rule for rule, *_ in FAULTS} == {*settings()["paraphrases.allow"].metadata["choices"]}


@pytest.mark.parametrize(("rule", "text", "reason", "about"), [(*fault, TASK)[:4] for fault in FAULTS])
def test_a_fault_is_named_by_its_rule_which_can_be_left_out(rule, text, reason, about):
    found = check_text(text, about, [])
    assert found.rule == rule
    assert reason in found.reason
    following = check_text(text, about, [], (rule,))
    assert following is None or following.rule != rule


KEEP_A = task("Fill in \"_\" where a [Link] was. Don't say 'yes, and...' in John's words.")
STARS = ("1 star", "2 stars", "5 stars")
RATING = task('Give a rating from "1 star" to "5 stars" for the place that is reviewed.', STARS)
MARKED = task("Paraphrase the <b>bold</b> sentence in {braces}, and rewrite nothing else that you see there.")
TWO_LINES = task("Classify the text of this tweet.\nAnswer after having thought about what it says.")
PAST = task("Change the given sentence so that everything in it happens in the past.")


@pytest.mark.parametrize(
    ("about", "text"),
    [
        (TASK, SOUND),
        (
            RATING,
            "Rate the reviewed place. The lowest rating is 1 star and the highest one is 5 stars.",
        ),
        (KEEP_A, "The gap _ and the mark [Link] are to be filled, 'Yes, and' left out."),
        # What the original has itself is no fault, and words of a task are no markers.
        (
            MARKED,
            "Of all the text shown, only the <b>bold</b> sentence within {braces} should be paraphrased.",
        ),
        (TWO_LINES, "Think about the meaning of the tweet first.\nThen put it into a class."),
        (PAST, "Here is a sentence about something. Put what happens there into the past."),
        (PAST, "Rewrite some sentence so that it tells of the past."),
        (PAST, "3 rules hold: read what is given, find its verbs, and put these into the past tense."),
        (QUESTION, "Give an answer: it must come from the paragraph, as the question asks."),
    ],
)
def test_a_sound_text_passes(about, text):
    assert reason_of(text, about, "Sort tweets: POS for happy ones, NEG for the rest.") == ""


def test_nearness_to_accepted_texts():
    assert reason_of(SOUND, TASK, "Another.", SOUND) == "it is the same as paraphrase 1 [same]"
    assert "nearly paraphrase 0" in reason_of(SOUND.replace("Read", "See"), TASK, SOUND)


@pytest.mark.parametrize(
    ("label", "text", "kept"),
    [
        ("a", "Write a or b.", True),
        ("a", "Options: (a), (b).", True),
        ("a", "Pick 'a' if the first fits.", True),
        ("a", "Pick a title, not b.", False),
        ("A", "A. dovish, B. hawkish", True),
        ("A", "A text is given. Choose B.", False),
        ("A", "Read it. A text is given. Choose B.", False),
        ("A", "选择A或者B", True),
        ("A", "选择AB", False),
        ("1", "from 1 to 5", True),
        ("1", "from 10 to 50", False),
        ("1", "1表示很差", True),
        ("Positive Review", "is it a 'Positive Review' or not", True),
        ("Positive Review", "is it a positive review or not", False),
    ],
)
def test_labels_count_as_whole_words(label, text, kept):
    about = task(f"Answer with '{label}' here, always.", labels=(label,))
    assert ("lost the label" not in reason_of(text, about)) == kept


def test_quoted_literals_are_kept_in_any_quotes():
    assert quoted_literals(KEEP_A.instruction) == ("_", "[Link]", "yes, and")
    found = reason_of("The gap and the mark [Link] are to be filled, without agreeing first.", KEEP_A)
    assert found == "it lost '_', 'yes, and', which the original quotes [quoted]"


@pytest.mark.parametrize(
    ("of", "low", "high"),
    [(20, 4, 300), (60, 12, 300), (100, 30, 300), (200, 60, 600)],
)
def test_a_length_must_be_like_the_originals(of, low, high):
    words = " ".join("".join(letters) for letters in product("abcdefgh", repeat=3))
    about = task("x" + words[1 - of :])
    for size, is_fine in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
        assert ("[length]" not in reason_of(words[: size - 1] + ".", about)) == is_fine


# --- other languages ---------------------------------------------------------------------------------------

LANGUAGES = {
    "Russian": (
        "Определите тему обращения клиента: оплата, аккаунт или ошибка.",
        "К какой из групп относится сообщение клиента: оплата, аккаунт или ошибка?",
        ("оплата", "аккаунт", "ошибка"),
    ),
    "Greek": ("Βρες το θέμα του μηνύματος.", "Για ποιο πράγμα μιλά ο πελάτης; Γράψε το.", ()),
    "Hindi": (
        "ग्राहक के संदेश का विषय चुनिए: भुगतान, खाता या त्रुटि।",
        "नीचे दिया गया संदेश किस बारे में है, भुगतान, खाता या त्रुटि? एक शब्द में लिखें।",
        ("भुगतान", "खाता", "त्रुटि"),
    ),
    "Arabic": (
        "حدد موضوع رسالة العميل: الدفع أو الحساب أو الخطأ.",
        "اقرأ ما كتبه الزبون ثم اذكر عمّ يتحدث، الدفع أو الحساب أو الخطأ، بكلمة واحدة.",
        ("الدفع", "الحساب", "الخطأ"),
    ),
    "Korean": (
        "고객 메시지의 주제를 결제, 계정, 오류 중에서 고르세요.",
        "아래 글이 결제, 계정, 오류 가운데 무엇에 관한 것인지 답하세요.",
        ("결제", "계정", "오류"),
    ),
    "Japanese": (
        "お客様のメッセージの話題を、支払い、アカウント、エラーから選んでください。",
        "次の文章が支払い、アカウント、エラーのどれについて述べているかを答えなさい。",
        ("支払い", "アカウント", "エラー"),
    ),
    "Persian": ("موضوع پیام مشتری را مشخص کنید.", "پیام درباره‌ی چیست؟ آن را بنویسید.", ()),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_pool_is_in_its_originals_script(language):
    original, text, labels = LANGUAGES[language]
    about = task(original, labels)
    assert reason_of(text, about) == ""
    if labels:
        assert reason_of(text.replace(labels[-1], "?"), about) == f"it lost the label {labels[-1]!r} [labels]"
    english = f"Which group does what the client says belong to: {', '.join(labels)}?"
    assert " as the original: " in reason_of(english, task(original))
    assert reason_of(text, task("Say which of the groups the message is of."))


def test_chinese():
    labels, suffix = ("A", "B", "C"), "直接只回答A 或者 B 或者 C作为你的答案。"
    about = task(
        "判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。输出A，B或者C。",
        labels,
        suffix,
        "zh",
    )
    text = "请阅读下面这段话，看作者如何看待所给的对象：赞成选A，不赞成选B，没有倾向则选C。"
    assert reason_of(text, about) == ""
    assert reason_of(text.replace("选C", "选丙"), about) == "it lost the label 'C' [labels]"
    english = "Say whether the text is for (A), against (B) or neither (C)."
    assert "not Chinese as the original: 0%" in reason_of(english, about)
    assert "repeats the suffix" in reason_of(text + "直接只回答A或者B或者C作为你的答案。", about)
    assert "改写" in reason_of("改写：" + text, about)


def test_chinese_is_not_japanese_and_words_of_an_alphabet_are_whole():
    chinese = "请从付款、账户和错误三个选项中选出客户信息的主题内容。"
    assert "it is not Kana as the original: 0%" in reason_of(chinese, task(LANGUAGES["Japanese"][0]))
    found = reason_of("次の文章の客户信息主題内容選択項目を記述せよ", task(chinese))
    assert "in a script that the original has not: Kana" in found
    russian = task("Ответь словом «шум» или «тишина» о данном отрывке.")
    assert quoted_literals(russian.instruction) == ("шум", "тишина")
    found = reason_of("Прочитай отрывок: бесшумно там, тишина, или как?", russian)
    assert found == "it lost 'шум', which the original quotes [quoted]"


# --- a pool ------------------------------------------------------------------------------------------------


def test_outer_blanks_of_a_block_scalar_are_no_part_of_a_text(tmp_path):
    path, about = tmp_path / "pool.yaml", task("Answer the request.\n")
    block = "original: |\n  Answer the request.\nprompts:\n  - >\n    Write the response\n    that fits.\n"
    path.write_text(block)
    pool = read_pool(path, about)
    assert [prompt.text for prompt in pool.paraphrases] == ["Write the response that fits."]
    assert check_pool(pool, about) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pool.txt", "\ufeffSort it, please. \r\n\n  Put it in order.\n"),
        ("pool.yaml", "- Sort it, please.\n- Put it in order.\n"),
        ("pool.json", '["Sort it, please.", "Put it in order."]'),
    ],
)
def test_a_plain_list_is_a_pool(tmp_path, name, content):
    about = task("Say what comes first.")
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / name).with_stem("some").write_text(content, encoding="utf-8")
    of_file = load_pool(about, ParaphrasesConfig("file", "file", file=str(tmp_path / name)))
    of_folder = load_pool(about, ParaphrasesConfig("file", "file", file=str(tmp_path)))
    assert [prompt.text for prompt in of_file.paraphrases] == ["Sort it, please.", "Put it in order."]
    assert of_folder.paraphrases == of_file.paraphrases


def test_an_instruction_of_any_size_is_refused_by_its_size_alone():
    huge = task("word " * 50_000)
    said = "the task's instruction has 250,000 characters; one may have 100,000"
    assert check_pool(pool_of(huge, [SOUND], ""), huge)[0] == Problem(-1, "size", said)


def test_all_problems_of_a_pool_are_listed_at_once():
    texts = [SOUND, "", SOUND, "Here is a version: tell if the tweet is POS or not."]
    pool = pool_of(TASK, texts, "mine.yaml")
    assert check_pool(pool, TASK) == [
        Problem(1, "empty", "it is empty"),
        Problem(2, "same", "it is the same as paraphrase 0"),
        Problem(3, "labels", "it lost the label 'NEG'"),
        Problem(3, "marks", SAYS),
    ]
    message = refusal(require_usable, pool, TASK)
    assert "tweets (mine.yaml)" in message
    assert "  paraphrase 1: it is empty [empty]\n  paraphrase 2: it is the same" in message
    assert "'NEG' [labels]" in message
    assert "marks" not in message  # only said, of a pool that somebody has written
    require_usable(pool, TASK, ("empty", "same", "labels", "marks"))


def test_a_written_pool_is_used_as_it_is_and_what_is_odd_is_said(caplog):
    pool = pool_of(TASK, ["Here is a version: POS or NEG?", INSTRUCTION.replace("tweet", "Tweet")], "mine")
    require_usable(pool, TASK)
    assert f"paraphrase 0: {SAYS} [marks]" in caplog.text
    assert "paraphrase 1: it is nearly the original" in caplog.text
    assert "paraphrases.allow=[marks,near] says no more of it" in caplog.text
    caplog.clear()
    require_usable(pool, TASK, ("marks", "near"))
    assert caplog.text == ""


@pytest.mark.parametrize("of", ["{}?", "Classify: {}."])
def test_paraphrases_of_a_list_of_labels_are_let_through(of):
    """What makes them alike are the labels, which each must keep."""
    listed = "billing, account, bug, or feature"
    about = task(of.format(listed), ("billing", "account", "bug", "feature"))
    texts = [
        f"Is it {listed}?",
        f"Categorise: {listed}.",
        f"Label this as {listed}.",
        "Of billing, account, bug, and feature, which one fits?",
        "Decide between billing, account, bug, and feature.",
        f"What is the customer writing about? Answer {listed}.",
    ]
    assert check_pool(pool_of(about, texts, ""), about) == []
    assert "words are the same" in reason_of("Is it bug, account, billing, or feature?", about, *texts)
    assert reason_of("Is it billing, account, or bug?", about) == "it lost the label 'feature' [labels]"


def test_empty_pools():
    """Py150 has no instruction, and so nothing to paraphrase."""
    without = task("", suffix="Answer:")
    assert check_pool(pool_of(without, [], ""), without) == []
    sound = [SOUND, "Sort the tweet: POS when it sounds happy, NEG when not."]
    require_usable(pool_of(TASK, sound, ""), TASK)
    assert check_pool(pool_of(TASK, [], ""), TASK) == [Problem(-1, "empty", "it holds no paraphrases")]
    nothing = Problem(-1, "empty", "the task has no instruction that could be paraphrased")
    assert check_pool(pool_of(without, ["Complete the code."], ""), without) == [nothing]
