import pytest
from hypothesis import given
from hypothesis import strategies as st

from unseen.errors import InputError
from unseen.registry import REGISTRIES, Registry, Spec, objectives

VALUES = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=5))
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)


@given(st.from_regex(r"[a-z][a-z0-9\-]{0,8}", fullmatch=True), st.dictionaries(NAMES, VALUES, max_size=3))
def test_a_specification_survives_printing(name, options):
    import keyword

    options = {
        k: v
        for k, v in options.items()
        if not keyword.iskeyword(k) and v not in (float("inf"), float("-inf"))
    }
    spec = Spec.make(name, **options)
    assert (
        Spec.of(str(spec)) == spec
        and Spec.of(spec.to_json()) == spec
        and hash(Spec.of(str(spec))) == hash(spec)
    )


@pytest.mark.parametrize("text", ["irm(", "irm(3)", "irm(a=b)", "irm)a=1("])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(InputError, match="cannot be read|is not known"):
        objectives.build(text)


def test_near_names_are_offered():
    with pytest.raises(InputError, match="Did you mean 'groupdro'"):
        objectives["grupdro"]
    with pytest.raises(InputError, match="option 'step_sise'.*Did you mean 'step_size'"):
        objectives.build("groupdro(step_sise=1)")


def test_presets_are_defaults_that_can_be_overridden():
    registry = Registry("thing", "unseen.objectives")

    @registry.register("double", summary="", preset={"factor": 2})
    @registry.register("triple", summary="", preset={"factor": 3})
    def thing(factor=1, base=10):
        return factor * base

    assert registry.build("double") == 20 and registry.build("triple(base=1)") == 3
    assert registry.build("double(factor=5)") == 50
    assert registry["double"].options() == {"factor": 2, "base": 10}
    with pytest.raises(InputError, match="already registered"):

        @registry.register("double", summary="")
        def other():
            return None


@pytest.mark.parametrize("kind", REGISTRIES)
def test_everything_registered_says_what_it_is(kind):
    for entry in REGISTRIES[kind]:
        assert entry.summary and not entry.summary.endswith("."), entry.name
        assert set(entry.preset) | set(entry.search) <= set(entry.options()), entry.name
