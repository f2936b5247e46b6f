"""Says which configuration files satisfy a JSON Schema, with the validator of the package jsonschema.

Takes the schema and files; prints a line for each, `NAME fits`, `NAME is refused: WHY` or `NAME is no TOML: WHY`. Begins with the
schema itself: it must be one, and each default in it must be a value that it permits.
"""

import json
import pathlib
import sys

from jsonschema import Draft202012Validator

try:
    import tomllib
except ImportError:
    import tomli as tomllib


def main(schema, *files):
    schema = json.loads(pathlib.Path(schema).read_text())
    Draft202012Validator.check_schema(schema)
    for key, of_key in schema["properties"].items():
        if "default" in of_key:
            Draft202012Validator(of_key).validate(of_key["default"])
        assert of_key.get("description"), f"{key} has no description"
    validator = Draft202012Validator(schema)
    for file in map(pathlib.Path, files):
        try:
            text = file.read_text("utf-8-sig")
            error = next(validator.iter_errors(tomllib.loads(text)), None)
            verdict = f"is refused: {error.message}" if error else "fits"
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            verdict = f"is no TOML: {error}"
        print(file.name, " ".join(verdict.split()))


main(*sys.argv[1:])
