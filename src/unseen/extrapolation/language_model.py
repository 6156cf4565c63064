"""Domains that a language model proposes: questions, a strict reading of the answers, and their raw text on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from unseen.errors import InputError, nearest
from unseen.extrapolation.proposals import DomainSpec, named

Style = Literal["direct", "cot", "role"]
STYLES: tuple[Style, ...] = ("direct", "cot", "role")
READING = 1
"""Version of questions and parser: part of the key under which answers are kept."""


class LLMProposer:
    """Asks a language model for domains that nobody has collected (Li et al. 2024, arXiv 2403.05523, section 3).

    model      question -> answer: a `ChatEndpoint`, or any function of a string
    style      "direct"; "cot", which lets the model think before it answers; "role", which calls it an expert
    per_class  True asks once for each class, as the paper does, and the k-th answers of all classes make one
               domain, since domains of a single class would give the label away; False asks once for domains
               that all classes share
    prompts    prompts for each class in each domain
    attempts   questions, the first and repetitions, before an unusable answer is an `InputError`
    exclude    words that no domain may contain, such as the names of unseen domains: domains that do are left
               out and others asked for; the model is not told
    answers    folder for the raw answers: the same question is then asked once only
    """

    def __init__(
        self,
        model: Callable[[str], str],
        *,
        style: Style = "direct",
        per_class: bool = True,
        prompts: int = 1,
        attempts: int = 3,
        exclude: Sequence[str] = (),
        answers: str | Path | None = None,
    ):
        if style not in STYLES:
            raise InputError("style", f"is {style!r}", nearest(style, STYLES))
        if prompts < 1 or attempts < 1:
            raise InputError("prompts, attempts", f"are {prompts}, {attempts}", "Give at least 1 of each.")
        self.model, self.style, self.per_class, self.prompts = model, style, per_class, prompts
        self.attempts, self.exclude = attempts, tuple(exclude)
        self.answers = None if answers is None else Path(answers)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "proposer": "language model",
            "model": self._model_name,
            "style": self.style,
            "per_class": self.per_class,
            "prompts": self.prompts,
            "reading": READING,
        }

    @property
    def _model_name(self) -> str:
        return str(
            getattr(self.model, "name", getattr(self.model, "__qualname__", type(self.model).__name__))
        )

    def propose(self, task: str, classes: Sequence[str], n: int) -> list[DomainSpec]:
        """`n` domains with prompts of every class. Raises `InputError` when the model gives no usable answer."""
        if n < 1 or not classes:
            raise InputError("domains, classes", f"are {n}, {list(classes)}", "Ask for 1 or more of each.")
        if (name := named(task, self.exclude)) is not None:
            raise InputError(
                f"task {task!r}",
                f"tells the language model of {name!r}, which is to stay unseen",
                "Describe the task without it.",
            )
        if not self.per_class:
            return self._ask(task, list(classes), n)
        by_class = {cls: self._ask(task, [cls], n) for cls in classes}
        return [
            DomainSpec(
                f"proposal {k + 1}",
                "; ".join(f"{cls}: {found[k].name}" for cls, found in by_class.items()),
                {cls: found[k].prompts[cls] for cls, found in by_class.items()},
            )
            for k in range(n)
        ]

    def _ask(self, task: str, classes: list[str], n: int) -> list[DomainSpec]:
        """Domains for these classes; what an answer lacks is asked for again."""
        found: dict[str, DomainSpec] = {}
        problem = ""
        for attempt in range(self.attempts):
            missing = n - len(found)
            question = self._question(
                task, classes, missing, [domain.name for domain in found.values()], problem
            )
            stored = self._stored(question, attempt)
            answer = self.model(question) if stored is None else stored
            try:
                domains, problem = read_answer(answer, classes, self.prompts), ""
            except ValueError as error:
                problem = str(error)
                self._store(question, attempt, answer, rejected=problem)
                continue
            if stored is None:
                self._store(question, attempt, answer)
            for domain in domains:
                if named(domain.text, self.exclude) is None and len(found) < n:
                    found.setdefault(domain.name.casefold(), domain)
            if len(found) == n:
                return list(found.values())
        why = problem or f"gave {len(found)} different usable domains of {n}"
        where = f" Its answers lie in {str(self.answers)!r}." if self.answers else ""
        raise InputError(
            f"language model {self._model_name!r}",
            f"{why}, after {self.attempts} attempt(s)",
            f"Ask for fewer domains, allow more attempts, or take a stronger model.{where}",
        )

    def _question(self, task: str, classes: list[str], n: int, had: list[str], problem: str) -> str:
        lines = [f"You are an expert in {task}."] if self.style == "role" else []
        what = f"class {classes[0]!r}" if len(classes) == 1 else "classes " + ", ".join(map(repr, classes))
        lines += [
            f"Task: {task}. A classifier must recognise the {what} in surroundings, styles and media that nobody "
            f"has collected examples of.",
            f"Name {n} such domain(s), as different from each other as they can be, in which every class can "
            f"plausibly be found. For each write what the class looks like there as {self.prompts} different "
            "prompt(s) for a generator, each complete in itself.",
        ]
        if had:
            lines.append("Already named, not to be repeated: " + "; ".join(had) + ".")
        if self.style == "cot":
            lines.append(
                "First think step by step about what can differ between places. Then write the answer."
            )
        example = {
            "domain": "short name",
            "description": "one sentence",
            "prompts": {cls: ["..."] * self.prompts for cls in classes},
        }
        lines.append("The answer is a JSON list of objects of this form: " + json.dumps(example))
        if problem:
            lines.append(f"An earlier answer could not be used: it {problem}.")
        return "\n".join(lines)

    def _path(self, question: str, attempt: int) -> Path | None:
        if self.answers is None:
            return None
        key = json.dumps([READING, self._model_name, question, attempt])
        return self.answers / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def _stored(self, question: str, attempt: int) -> str | None:
        path = self._path(question, attempt)
        return json.loads(path.read_text())["answer"] if path is not None and path.exists() else None

    def _store(self, question: str, attempt: int, answer: str, rejected: str = "") -> None:
        """Keep the raw answer; a rejected one is kept to be read by people, and asked for again the next time."""
        path = self._path(question, attempt)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if rejected:
            path = path.with_suffix(".rejected.json")
        record = {"model": self._model_name, "question": question, "answer": answer, "rejected": rejected}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1))
        os.replace(part, path)


def read_answer(answer: str, classes: Sequence[str], prompts: int = 1) -> list[DomainSpec]:
    """The domains in an answer: the last JSON list of objects in it, whatever is written around it.

    Each must be {"domain": name, "description": text, "prompts": {class: [text, ...]}}, with at least `prompts`
    different texts for each class, of which the first `prompts` are kept; characters that no folder's name may
    have become dashes in the name. Raises `ValueError` whose text completes "the answer ...".
    """
    listed = _last_list(answer)
    if listed is None:
        raise ValueError("holds no JSON list of objects")
    return [_read_domain(item, classes, prompts) for item in listed]


def _last_list(text: str) -> list[dict[str, Any]] | None:
    decoder, found, end = json.JSONDecoder(), None, 0
    for start in (match.start() for match in re.finditer(r"\[", text)):
        if start < end:  # inside a list that was read
            continue
        try:
            value, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if value and isinstance(value, list) and all(isinstance(item, dict) for item in value):
            found, end = value, stop
    return found


def _read_domain(item: dict[str, Any], classes: Sequence[str], prompts: int) -> DomainSpec:
    name = item.get("domain")
    if not isinstance(name, str) or not (name := _folder_name(name)):
        raise ValueError("holds a domain without a name")
    given = item.get("prompts")
    if not isinstance(given, dict):
        raise ValueError(f"gives domain {name!r} no prompts by class")
    kept = {}
    for cls in classes:
        texts = [given[cls]] if isinstance(given.get(cls), str) else given.get(cls)
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"gives domain {name!r} no prompt for class {cls!r}")
        texts = list(dict.fromkeys(text.strip() for text in texts))
        if len(texts) < prompts:
            raise ValueError(f"gives domain {name!r} {len(texts)} prompt(s) of {prompts} for class {cls!r}")
        kept[cls] = texts[:prompts]
    description = item.get("description")
    return DomainSpec(name, description if isinstance(description, str) else "", kept)


def _folder_name(name: str) -> str:
    """A name without the characters that no folder's name may have."""
    return re.sub(r'[/\\\x00-\x1f:*?"<>|]+', "-", name).strip(" .-")
