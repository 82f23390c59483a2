"""The scripts of a page, inlined, and the content security policy that goes with them."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

_FOLDER = Path(__file__).parent
_LIBRARY, _LICENCE, _OWN = "tablesort.min.js", "tablesort.LICENCE.txt", "report.js"


@cache
def script() -> Markup:
    """The one script of a page: Tablesort under its licence, then `report.js`."""
    library, licence, own = ((_FOLDER / name).read_text("utf-8") for name in (_LIBRARY, _LICENCE, _OWN))
    return Markup(f"/*! tablesort (https://github.com/tristen/tablesort)\n{licence}*/\n{library}\n{own}")


@cache
def policy() -> str:
    """A content security policy: no request of any kind, and no script but `script`, by its digest."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def page_environment(*folders: Path) -> jinja2.Environment:
    """What a page's template is read with: its own `folders`, then the report's, whose head and style pages share."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _FOLDER.parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(script=script(), policy=policy())
    return environment
