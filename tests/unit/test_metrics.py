"""The catalogue of metrics keeps what its page promises."""

import pytest
from prometheus_client import REGISTRY, Counter, Histogram

from config.metrics import Entry, catalogue
from domain import errors

each_metric = pytest.mark.parametrize("entry", catalogue, ids=lambda entry: entry.name)

# What Prometheus recommends as base units, and the things that we count.
UNITS = ("_seconds", "_bytes", "_ratio", "_total", "_records")
COUNTED_NOW = {
    "headrace_turns_in_work",
    "headrace_turns_held",
    "headrace_open_streams",
    "headrace_model_requests_open",
    "headrace_model_servers",
    "headrace_archive_up",
    "headrace_tabulate_up",
    "headrace_windows_waiting",
}


@each_metric
def test_a_name_ends_in_its_unit(entry: Entry) -> None:
    assert entry.name.startswith("headrace_")
    assert entry.name.endswith(UNITS) or entry.name in COUNTED_NOW


@each_metric
def test_only_counters_end_in_total(entry: Entry) -> None:
    assert entry.name.endswith("_total") == isinstance(entry.metric, Counter)


@each_metric
def test_a_help_text_asks_the_question_that_the_metric_answers(entry: Entry) -> None:
    assert "?" in entry.question
    assert entry.metric._documentation == entry.question


@each_metric
def test_each_label_says_which_values_it_takes(entry: Entry) -> None:
    assert tuple(entry.labels) == entry.metric._labelnames
    assert all(entry.labels.values())


@each_metric
def test_no_label_names_a_person_or_a_conversation(entry: Entry) -> None:
    assert not {"user", "tenant", "conversation_id", "turn_id", "request_id", "model", "path", "url"} & set(
        entry.labels
    )


@each_metric
def test_buckets_rise(entry: Entry) -> None:
    if isinstance(entry.metric, Histogram):
        assert sorted(set(entry.metric._upper_bounds)) == list(entry.metric._upper_bounds)


@each_metric
def test_what_is_declared_is_what_is_exposed(entry: Entry) -> None:
    exposed = {sample for family in REGISTRY.collect() for sample in (family.name, f"{family.name}_total")}

    assert entry.name in exposed


def test_every_metric_is_in_the_catalogue_once() -> None:
    names = [entry.name for entry in catalogue]

    assert len(set(names)) == len(names)


def test_reasons_of_dead_letters_are_as_few_as_the_error_codes() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ChatError)]

    assert len({kind.code for kind in kinds}) == len(kinds) < 20
