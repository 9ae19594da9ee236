"""The versioned API: the JSON of the pages under `/api/v1`, described by OpenAPI 3.1, which follows from the pages."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import suggestion
from capacity_assets.web.rendering import PageRoute
from capacity_assets.web.routes import PAGES, PARAMETERS

API = "/api/v1"
DOCUMENT = f"{API}/openapi.json"
ABOUT = (
    "What the pages show, read-only. Sizes are whole MiB, amounts are text, days are in the time zone of the capacity "
    "database, and what is unknown is null. Empty parameters are ignored. Within a version, names may be added but are "
    "never removed or changed."
)
RULES = "x-parameter-rules"
"""The key of an operation with JSON Schema rules across its parameters, which OpenAPI cannot express."""
OWN, SHARED = "#/$defs/", "#/components/schemas/"
CONTRADICTION = "422"
"""Only operations with rules for their parameters have this status."""
REFUSAL_TEXTS = {
    "400": "A parameter is unknown or invalid.",
    "404": "Not found.",
    CONTRADICTION: "Assumptions contradict each other or the measured sizes.",
    "503": "The database did not respond.",
}


class _Described(GenerateJsonSchema):
    """Requires every field, because answers have all of them; describes it by its docstring, and has no titles."""

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: ARG002 -- as pydantic calls it
        return True

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        described = super().dataclass_schema(schema)
        # Pydantic does not read the docstrings of inherited fields.
        for kind in reversed(schema["cls"].__mro__):
            for name, text in _field_docstrings(kind.__module__).get(kind.__qualname__, {}).items():
                if name in described["properties"]:
                    described["properties"][name]["description"] = text
        return described


@cache
def _field_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings of the fields of each class of a module, by class and field."""
    if not module.startswith("capacity_assets."):
        return {}
    return {
        kind.name: {
            field.target.id: " ".join(str(text.value.value).split())
            for field, text in pairwise(kind.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        }
        for kind in ast.parse(inspect.getsource(sys.modules[module])).body
        if isinstance(kind, ast.ClassDef)
    }


@cache
def _schemas() -> tuple[dict[str, str], dict[str, Any]]:
    """Return the name of the kind of each page's answer, and the JSON schemas of all kinds by their names."""
    inputs: list[tuple[str, Any, TypeAdapter[Any]]] = [(page.name, "serialization", page.form) for page in PAGES]
    references, schemas = TypeAdapter.json_schemas(inputs, schema_generator=_Described)
    return {name: reference["$ref"].removeprefix(OWN) for (name, _), reference in references.items()}, schemas["$defs"]


def parameter_schema(page: PageRoute, name: str, label_keys: Sequence[str]) -> dict[str, object]:
    """Return the JSON schema of a parameter of a page, with the keys of labels by which there are groups."""
    _, schema = PARAMETERS[name]
    choices = (*page.groupings, *label_keys) if name == "by" else page.choices.get(name)
    is_needed_text = name in page.needed and schema["type"] == "string"
    return {**schema, **({"enum": list(choices)} if choices else {}), **({"minLength": 1} if is_needed_text else {})}


def arguments_schema(page: PageRoute, label_keys: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema of the parameters of a page, as one object."""
    described = {
        name: {**parameter_schema(page, name, label_keys), "description": PARAMETERS[name][0]}
        for name in page.parameters
    }
    return {
        "type": "object",
        "properties": described,
        "required": list(page.needed),
        "additionalProperties": False,
        **page.rules,
    }


def refuse_unknown_parameters(page: PageRoute, names: Iterable[str]) -> None:
    """Raise ValidationError for a parameter that a page does not read."""
    for name in names:
        if name not in page.parameters:
            known = ", ".join(page.parameters)
            raise ValidationError(
                f"{page.name} has no parameter {name!r}; it has {known}.{suggestion(name, page.parameters)}"
            )


def openapi(label_keys: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI document of the answers of pages, with the keys of labels by which there are groups."""
    names, kinds = _schemas()
    schemas = json.loads(json.dumps(kinds).replace(f'"{OWN}', f'"{SHARED}'))
    refusal = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "capacity_assets", "version": version("capacity_assets"), "description": ABOUT},
        "paths": {
            f"{API}/{page.name}": {"get": _operation(page, label_keys, {"$ref": f"{SHARED}{names[page.name]}"})}
            for page in PAGES
        },
        "components": {
            "schemas": {**schemas, "Refusal": {**refusal, "description": "Why there is no answer."}},
            "responses": {
                status: {"description": text, "content": _json({"$ref": f"{SHARED}Refusal"})}
                for status, text in REFUSAL_TEXTS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "CAPACITY_WEB_TOKEN"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(page: PageRoute, label_keys: Sequence[str], schema: Mapping[str, object]) -> dict[str, object]:
    return {
        "operationId": page.name,
        "summary": page.title,
        "description": page.description,
        **({RULES: page.rules} if page.rules else {}),
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": name in page.needed,
                "description": PARAMETERS[name][0],
                "schema": parameter_schema(page, name, label_keys),
            }
            for name in page.parameters
        ],
        "responses": {
            "200": {"description": page.description, "content": _json(schema)},
            **{
                status: {"$ref": f"#/components/responses/{status}"}
                for status in REFUSAL_TEXTS
                if status != CONTRADICTION or page.rules
            },
        },
    }


def _json(schema: Mapping[str, object]) -> dict[str, object]:
    return {"application/json": {"schema": schema}}
