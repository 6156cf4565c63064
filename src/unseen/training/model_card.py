"""The card of a deployed model: what it is, what it was judged on, when it abstains."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment

from unseen.registry import Spec

_TEMPLATE = """\
# Model card

{{ "%d" % classes|length }}-class classifier: {% for name in classes[:20] %}`{{ name }}`{{ ", " if not loop.last }}{% endfor %}{{ ", ..." if classes|length > 20 }}.
Made by {{ library }}.

## Use

    import unseen
    model = unseen.load("this folder")
    model.predict(data)    # label, probabilities, familiarity, accept

or `unseen predict FOLDER DATA -o OUT.csv`.

## Training

| | |
|---|---|
{% for name, value in training.items() if value is not mapping -%}
| {{ name.replace("_", " ") }} | {{ value | join(", ") if value is sequence and value is not string else value }} |
{% endfor -%}
{% if training.learner -%}
| learner | {{ training.learner.objective.name }} + {{ training.learner['update'].name }}{{ " + " + training.learner.averaging.name if training.learner.averaging }} |
| optimizer | {{ training.learner.optimizer }}, learning rate {{ training.learner.learning_rate }}, {{ training.learner.batch_size }} examples a domain and step |
{% endif -%}
| network | {{ network.name }} |
| inputs | {{ preprocessing.kind }} |

{% if familiarity -%}
## When it abstains

Familiarity is scored by `{{ familiarity.detector | spec }}` (higher = more like the training data). Inputs below
{{ "%.6g" % familiarity.threshold }} are not accepted; {{ "%g" % (100 * familiarity.coverage) }} % of in-distribution validation examples are accepted.
{%- if training.detector_tuning %}
Its options are the best of {{ training.detector_tuning.candidates }} on tuning data ({{ training.detector_tuning.data }}) that judged no detector.
{%- endif %}
{% endif %}
{% if training.evaluation -%}
## How it was judged

{{ training.evaluation.statement }}

| unseen domain | accuracy | 95 % interval | examples |
|---|---|---|---|
{% for row in training.evaluation.unseen -%}
| {{ row.domain }} | {{ "%.3f" % row.accuracy }} | {{ "%.3f" % row.low }} to {{ "%.3f" % row.high }} | {{ row.n }} |
{% endfor %}
{% endif -%}
## Limits

Accuracy on a domain that differs more from the training domains than these differ from one another can be
lower than anything written here. Familiarity is a score, not a guarantee: watch the share of accepted inputs.
"""


def model_card(description: dict[str, Any]) -> str:
    """Markdown for the description that a model folder holds."""
    environment = Environment(trim_blocks=False, keep_trailing_newline=True, autoescape=False)
    environment.filters["spec"] = lambda value: str(Spec.of(value))
    return environment.from_string(_TEMPLATE).render(**description)
