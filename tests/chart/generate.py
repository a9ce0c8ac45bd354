"""`python -m tests.chart.generate`: the files of the chart that are made from others.

- `README.md`: its table of values from `values.yaml` and the comments there.
- `values.schema.json`: what `config` may hold, from kpx's own model of a KubeProxyConfiguration.
- The golden files, from the chart.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kpx.api import KubeProxyConfiguration
from tests.chart.helm import CHART, release

GOLDEN = Path(__file__).parent / "golden"
README, SCHEMA, VALUES = CHART / "README.md", CHART / "values.schema.json", CHART / "values.yaml"
_TABLE = re.compile(r"(?<=<!-- values -->\n).*?(?=<!-- end -->)", re.DOTALL)
_KEY = re.compile(r"( *)([A-Za-z]+):")
_KEPT = ("type", "enum", "const", "minimum", "maximum")


def documented() -> Iterator[tuple[str, str]]:
    """Every commented value of values.yaml, in order: its path with dots, and its comment in one line."""
    path: list[str] = []
    comment: list[str] = []
    for line in VALUES.read_text().splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment.append(text.lstrip("# "))
            continue
        if match := _KEY.match(line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if comment:
                yield ".".join(path), " ".join(comment)
        comment = []


def value_at(path: str) -> Any:
    """The default under a path with dots."""
    found = yaml.safe_load(VALUES.read_text())
    for key in path.split("."):
        found = found[key]
    return found


def readme() -> str:
    """README.md with its table made anew."""
    rows = (f"| `{path}` | `{json.dumps(value_at(path))}` | {_cell(comment)} |" for path, comment in documented())
    table = "\n".join(["| value | default | what it is |", "| --- | --- | --- |", *rows, ""])
    return _TABLE.sub(lambda _: table, README.read_text())


def _cell(comment: str) -> str:
    return comment.replace("|", "\\|")


def schema() -> str:
    """values.schema.json with its part about `config` made anew."""
    whole = json.loads(SCHEMA.read_text())
    model = KubeProxyConfiguration.model_json_schema()
    whole["properties"]["config"] = _shape(model, model["$defs"])
    return json.dumps(whole, indent=2) + "\n"


def _shape(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Names and types of a model's schema. As in a real configuration, null is the same as nothing."""
    if "$ref" in node:
        return _shape(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:  # something or null
        return _shape(next(one for one in node["anyOf"] if one.get("type") != "null"), definitions)
    found = {key: node[key] for key in _KEPT if key in node}
    if "enum" in found:
        found["enum"] = [*found["enum"], "", None]
        found.pop("type", None)
    elif "type" in found:
        found["type"] = [found["type"], "null"]
    if "properties" in node:
        found["properties"] = {name: _shape(one, definitions) for name, one in node["properties"].items()}
        found["additionalProperties"] = False
    if isinstance(items := node.get("items"), dict):
        found["items"] = _shape(items, definitions)
    return found


def setups() -> dict[str, dict[str, Any]]:
    """The values of each setup that the chart shows, by its name."""
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    return {file.name.removesuffix("-values.yaml"): yaml.safe_load(file.read_text()) for file in files}


def main() -> None:
    """Write everything."""
    SCHEMA.write_text(schema())
    README.write_text(readme())
    for name, values in setups().items():
        (GOLDEN / f"{name}.yaml").write_text(release(values).text)


if __name__ == "__main__":
    main()
