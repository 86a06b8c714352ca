"""What a model is asked for a paraphrase, in the instruction's language, and reading its answer."""

import re
from collections.abc import Sequence

from sapo.data.pool_checks import kept_words
from sapo.data.tasks import Task

_ENGLISH = """Below, between <original> and </original>, is the instruction of a task for a language model. \
Write one other wording of this instruction.

Rules:
- Ask for exactly the same: the same task, the same choices, the same form of answer. Add no condition, \
example or hint, and leave none out.
- Change the wording clearly: other verbs, another order, another kind of sentence. About as long as the \
original.
{details}- Write in the language of the original, in plain text: no heading, list or bold type, and no \
quotation marks around the whole.
- Speak to the model that will do the task. Do not do the task, do not explain, and do not mention that \
there is another wording.
- Put the new wording between <instruction> and </instruction>, and write nothing else.

<original>
{original}
</original>"""
_ENGLISH_KEEP = "- Keep these to the letter, untranslated and in this spelling: {words}.\n"
_ENGLISH_SUFFIX = "- This sentence will follow by itself, so do not repeat it: {suffix}\n"
_ENGLISH_AVOID = "- It must also differ clearly from these wordings:\n{wordings}\n"

_CHINESE = """下面 <original> 与 </original> 之间是一条交给语言模型的任务指令。请用另一种说法写出这条指令。

要求：
- 任务、选项和作答形式必须与原指令完全相同；不得增加条件、例子或提示，也不得遗漏。
- 说法要有明显变化：换用别的动词、语序或句式；长度与原指令相近。
{details}- 使用中文，只写纯文本：不要标题、列表、加粗，也不要把整句放进引号。
- 面向将要完成任务的模型说话。不要完成任务本身，不要解释，也不要提到这是另一种说法。
- 把新的指令写在 <instruction> 与 </instruction> 之间，除此之外什么都不要写。

<original>
{original}
</original>"""
_CHINESE_KEEP = "- 下列内容必须一字不改地保留：{words}。\n"
_CHINESE_SUFFIX = "- 下面这句话会自动接在指令之后，不要重复它：{suffix}\n"
_CHINESE_AVOID = "- 还要与下列说法明显不同：\n{wordings}\n"

_TEMPLATES = {
    "en": (_ENGLISH, _ENGLISH_KEEP, _ENGLISH_SUFFIX, _ENGLISH_AVOID, ", "),
    "zh": (_CHINESE, _CHINESE_KEEP, _CHINESE_SUFFIX, _CHINESE_AVOID, "、"),
}
_THOUGHTS = re.compile(r"^.*</think>|<think>.*\Z", re.DOTALL)
_ANSWER = re.compile(r"<instruction>(.*?)</instruction>", re.DOTALL | re.IGNORECASE)


def meta_prompt(task: Task, avoid: Sequence[str] = ()) -> str:
    """The message that asks for one paraphrase of the task's instruction, unlike those to `avoid`."""
    whole, keep, suffix, others, comma = _TEMPLATES["zh" if task.language == "zh" else "en"]
    details = ""
    if words := kept_words(task):
        details += keep.replace("{words}", comma.join(f"`{word}`" for word in words))
    if task.suffix.strip():
        details += suffix.replace("{suffix}", task.suffix.strip())
    if avoid:
        details += others.replace("{wordings}", "\n".join(f"  {text}" for text in avoid))
    # Not `str.format`: an instruction may hold braces.
    rules, _, rest = whole.partition("{details}")
    more_rules, _, end = rest.partition("{original}")
    return f"{rules}{details}{more_rules}{task.instruction.strip()}{end}"


def answer_in(text: str) -> str | None:
    """The paraphrase in a model's answer: what stands in the tags, else all of it; None if it breaks off.

    Thoughts before the answer are no part of it.
    """
    text = _THOUGHTS.sub("", text)
    found = _ANSWER.findall(text)
    if found:
        return str(found[-1]).strip()
    return None if "<instruction>" in text.lower() else text.strip()
