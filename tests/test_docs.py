"""docs/codes.md, docs/metrics.md, docs/api.md and the README's commands say what the code does."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest
from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.cli import main
from gateway.connections import _COUNTED_CODES, RETRY_AFTER_FULL
from gateway.protocol import codec, codes
from gateway.protocol.codes import Disconnect, ErrorCode, Unsubscribe
from handlers.api import METHODS
from handlers.api_requests import BatchRequest
from metrics import instruments
from metrics.loop_instruments import LoopCounter, LoopHistogram

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md")), *sorted((DOCS / "decisions").glob("*.md"))]
CODE = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("gateway", "handlers")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def _text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def _section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"there is no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def _name(node: ast.AST) -> str:
    """A name with its dots, `a.b.c`; "" for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    rows = []
    is_body = False
    for line in text.splitlines():
        if not line.startswith("|"):
            is_body = False
        elif set(line) <= set("|- "):
            is_body = True
        elif is_body:
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# --- codes.md -------------------------------------------------------------------------------------


def _code_cells(known: ErrorCode | Unsubscribe | Disconnect) -> list[str]:
    if isinstance(known, ErrorCode):
        return [str(known.code), known.message, _yes(known.temporary), known.when]
    comes_back = known.reconnect if isinstance(known, Disconnect) else known.code >= 2500
    return [str(known.code), known.reason, _yes(comes_back), known.when]


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("## Errors", codes.ERRORS),
        ("## Unsubscribes", codes.UNSUBSCRIBES),
    ],
)
def test_codes_are_listed_as_they_are(
    heading: str, known: tuple[ErrorCode, ...] | tuple[Unsubscribe, ...]
) -> None:
    rows = _rows(_section(_text("codes.md"), heading))

    assert [row[:4] for row in rows] == [_code_cells(code) for code in known]
    assert all(row[4] for row in rows)


def test_disconnects_are_listed_as_they_are() -> None:
    rows = _rows(_section(_text("codes.md"), "## Disconnects"))
    ours = [row for row in rows if int(row[0]) >= 3000]
    others = {int(row[0]) for row in rows if int(row[0]) < 3000}

    assert [row[:4] for row in ours] == [_code_cells(code) for code in codes.DISCONNECTS]
    assert all(row[4] for row in ours)
    assert others < _COUNTED_CODES


def _unused_codes() -> dict[str, set[int]]:
    """The codes that nothing outside their own module mentions, by kind."""
    used = set()
    for path, tree in CODE.items():
        if path.name != "codes.py":
            used |= {_name(node).removeprefix("codes.") for node in ast.walk(tree)}
    unused: dict[str, set[int]] = {"ErrorCode": set(), "Unsubscribe": set(), "Disconnect": set()}
    for name, known in vars(codes).items():
        if isinstance(known, ErrorCode | Unsubscribe | Disconnect) and name not in used:
            unused[type(known).__name__].add(known.code)
    return unused


@pytest.mark.parametrize(
    ("heading", "kind", "words"),
    [
        ("## Errors", "ErrorCode", "not sent by this version"),
        ("## Unsubscribes", "Unsubscribe", "not sent by this version"),
        ("## Disconnects", "Disconnect", "only if the server API asks for this code"),
    ],
)
def test_codes_that_are_never_sent_are_marked(heading: str, kind: str, words: str) -> None:
    rows = _rows(_section(_text("codes.md"), heading))
    marked = {int(row[0]) for row in rows if row[-1].startswith(words)}

    assert marked == _unused_codes()[kind]


def _refusals() -> Iterator[tuple[str, str, str]]:
    """Status, outcome and Retry-After of every `Refused(…)` in the code."""
    for tree in CODE.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) == "Refused":
                status, _, outcome, *headers = node.args
                header = ast.unparse(headers[0]) if headers else ""
                retry_after = {"after": f"{RETRY_AFTER_FULL} s", "busy": "its slot"}.get(header, "")
                yield ast.unparse(status), f"`{ast.literal_eval(outcome)}`", retry_after


def test_refusals_are_listed_as_they_are() -> None:
    rows = _rows(_section(_text("codes.md"), "## Refused before there is a connection"))

    # The same status and outcome may stand in the code twice, for two reasons.
    assert {(row[0], row[1], row[2]) for row in rows} == set(_refusals())


# --- metrics.md -----------------------------------------------------------------------------------

Instrument = MetricWrapperBase | LoopCounter | LoopHistogram
INSTRUMENTS = {
    name: found for name, found in vars(instruments).items() if isinstance(found, Instrument)
}


def _labels(instrument: Instrument) -> Sequence[str]:
    if isinstance(instrument, MetricWrapperBase):
        return tuple(instrument._labelnames)
    return instrument.label_names


def _described(instrument: Instrument) -> Metric:
    (metric,) = instrument.describe()
    return metric


def _metric_name(instrument: Instrument) -> str:
    described = _described(instrument)
    return described.name + ("_total" if described.type == "counter" else "")


def _metric_row(instrument: Instrument) -> list[str]:
    described = _described(instrument)
    labels = ", ".join(f"`{label}`" for label in _labels(instrument))
    return [f"`{_metric_name(instrument)}`", described.type, labels, described.documentation]


def test_metrics_are_listed_as_they_are() -> None:
    head = _text("metrics.md").partition("\n## ")[0]

    assert _rows(head) == [_metric_row(instrument) for instrument in INSTRUMENTS.values()]


def _label_values() -> dict[tuple[str, str], set[str]]:
    """What the code gives the labels whose values can be read from it."""
    methods = set[str](codec.METHODS)
    given: dict[tuple[str, str], set[str]] = {
        ("HANDSHAKES", "outcome"): {"abandoned", "accepted"}
        | {outcome[1:-1] for _, outcome, _ in _refusals()},
        ("COMMANDS", "method"): methods,
        ("COMMAND_ERRORS", "method"): methods,
        ("DISCONNECTS", "code"): {*map(str, _COUNTED_CODES), "lost", "other"},
        ("API_REQUESTS", "method"): set(METHODS),
    }
    for name in ("PUBLICATIONS", "DROPS", "RECOVERIES", "LOG_READS", "DATABASE_CONNECTIONS"):
        (label,) = _labels(INSTRUMENTS[name])
        given[name, label] = _literal_labels(name)
    return given


def _literal_labels(name: str) -> set[str]:
    """The texts that can reach `instruments.<name>.labels(…)`.

    Where that gets a variable, they are the texts assigned to it in the same module.
    """
    found = set()
    for tree in CODE.values():
        nodes = list(ast.walk(tree))
        assigned = {
            target.id: node.value
            for node in nodes
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in nodes:
            if isinstance(node, ast.Call) and _name(node.func) == f"instruments.{name}.labels":
                (argument,) = node.args
                if isinstance(argument, ast.Name):
                    argument = assigned[argument.id]
                found |= _outcomes(argument)
    return found


def _outcomes(node: ast.expr) -> set[str]:
    """What a text, or one text or another, can come to."""
    if isinstance(node, ast.IfExp):
        return _outcomes(node.body) | _outcomes(node.orelse)
    value = ast.literal_eval(node)
    assert isinstance(value, str)
    return {value}


LABEL_VALUES = _label_values()


@pytest.mark.parametrize(("name", "label"), LABEL_VALUES)
def test_label_values_are_listed_as_they_are(name: str, label: str) -> None:
    rows = _rows(_section(_text("metrics.md"), "## Label values"))
    key = [f"`{_metric_name(INSTRUMENTS[name])}`", f"`{label}`"]
    (values,) = (row[2] for row in rows if row[:2] == key)

    listed = re.findall(r"`([^`]+)`", values)

    assert listed == sorted(LABEL_VALUES[name, label], key=_in_order)


def _in_order(value: str) -> tuple[bool, str]:
    """Numbers first."""
    return not value.isdecimal(), value


def test_every_label_has_its_values_listed() -> None:
    rows = _rows(_section(_text("metrics.md"), "## Label values"))

    assert [row[:2] for row in rows] == [
        [f"`{_metric_name(instrument)}`", f"`{label}`"]
        for instrument in INSTRUMENTS.values()
        for label in _labels(instrument)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_metrics_that_exist(page: Path) -> None:
    known = {_metric_name(instrument) for instrument in INSTRUMENTS.values()}
    mentioned = set(re.findall(r"\bcapegate_[a-z_]+[a-z]\b", page.read_text(encoding="utf-8")))

    assert {re.sub(r"_bucket$", "", name) for name in mentioned} <= known


# --- api.md ---------------------------------------------------------------------------------------

REQUESTS: dict[str, type[BaseModel]] = {
    **{method: model for method, (model, _) in METHODS.items()},
    "batch": BatchRequest,
}


def _default(info: FieldInfo) -> str:
    return (
        "required"
        if info.is_required()
        else f"`{json.dumps(info.get_default(call_default_factory=True))}`"
    )


@pytest.mark.parametrize("method", REQUESTS)
def test_api_method_is_documented_as_it_is(method: str) -> None:
    section = _section(_text("api.md"), f"### {method}")
    fields = REQUESTS[method].model_fields

    # In an order that reads well, which isn't always that of the base classes.
    assert {row[0]: row[2] for row in _rows(section)} == {
        f"`{name}`": _default(info) for name, info in fields.items()
    }
    assert re.search(r"^(Result|Answer):", section, re.MULTILINE)


def test_no_api_method_is_documented_that_does_not_exist() -> None:
    headings = re.findall(r"^### (.+)$", _text("api.md"), re.MULTILINE)

    assert headings == list(REQUESTS)


@pytest.mark.parametrize("method", REQUESTS)
def test_api_example_is_a_valid_request(method: str) -> None:
    section = _section(_text("api.md"), f"### {method}")
    (body,) = re.findall(rf"^call {method} '(.+)'$", section, re.MULTILINE)
    model = REQUESTS[method]

    request = model.model_validate_json(body, strict=True)

    assert request.model_fields_set == set(json.loads(body))


# --- README.md ------------------------------------------------------------------------------------


def _command_rows() -> dict[str, str]:
    """The usage lines in the README's table, by command."""
    rows = _rows(README.read_text(encoding="utf-8"))
    usages = [row[0].strip("`") for row in rows if row[0].startswith("`capegate ")]
    return {usage.split()[1]: usage for usage in usages}


def _options(command: click.Command) -> set[str]:
    names = (name for parameter in command.params for name in parameter.opts)
    return {name for name in names if name.startswith("--")}


def test_every_command_is_in_the_readme() -> None:
    # What `capegate version` does is what its name says.
    assert set(_command_rows()) | {"version"} == set(main.commands)


@pytest.mark.parametrize("command", _command_rows())
def test_readme_has_the_options_that_exist(command: str) -> None:
    documented = set(re.findall(r"--[a-z-]+", _command_rows()[command]))
    options = _options(main.commands[command])
    required = {
        name
        for parameter in main.commands[command].params
        if parameter.required
        for name in parameter.opts
    }

    assert documented <= options
    assert required <= documented
    # `--config` is the same everywhere, and stands where somebody would look for it.
    assert options - documented <= {"--config"}


# --- operations.md --------------------------------------------------------------------------------


def _texts() -> str:
    """Every text in the code, a line each, with … for what is filled in."""
    texts = []
    for path in (*CODE, *(ROOT / "store").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                texts.append("".join(map(str, parts)))
    return "\n".join(texts)


def test_start_errors_are_quoted_as_they_are() -> None:
    rows = _rows(_section(_text("operations.md"), "### When it doesn't start"))
    quoted = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row[0])]
    texts = _texts()

    unknown = [
        part
        for quote in quoted
        # A setting's name and source stand in front of what is wrong with it.
        for part in re.sub(r"^\w+ \(not set\): ", "", quote).split("…")
        if part.strip(" :.") not in texts
    ]

    assert unknown == []


def test_log_lines_are_quoted_as_they_are() -> None:
    section = _section(_text("operations.md"), "## When the database is down")
    (line,) = (line for line in section.splitlines() if line.startswith("The log says"))

    assert [quote for quote in re.findall(r"`([^`]+)`", line) if quote not in _texts()] == []


# --- links ----------------------------------------------------------------------------------------


def _anchor(heading: str) -> str:
    """The id that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _links(page: Path) -> set[str]:
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return {
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
        if not re.match(r"[a-z]+:", link)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if fragment:
            headings = re.findall(
                r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            assert fragment in map(_anchor, headings), link
